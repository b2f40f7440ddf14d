# SPDX-License-Identifier: Apache-2.0
"""Flow control windows (RFC 9113 5.2 and 6.9), of a stream or of the connection."""

from __future__ import annotations

from ztunnel.hbone import constants
from ztunnel.hbone.errors import ApiMisuseError, ErrorCode, H2ConnectionError


class SendWindow:
    """Octets that this side may send. Negative after the peer reduced its initial window."""

    __slots__ = ("available",)

    def __init__(self, available: int) -> None:
        self.available = available

    def widen(self, increment: int) -> bool:
        """Add the peer's credit, which may be negative; returns whether sending became possible."""
        before = self.available
        self.available = before + increment
        if self.available > constants.MAX_WINDOW_BYTES:
            raise H2ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "window widened beyond 2^31-1")
        return before <= 0 < self.available


class ReceiveWindow:
    """Octets that the peer may send.

    limit = available + received but not consumed + credit not yet announced
    """

    __slots__ = ("_credit", "_limit", "_threshold", "available")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threshold = limit // constants.CREDIT_FRACTION
        self._credit = 0
        self.available = limit

    def charge(self, n: int) -> None:
        """The peer sent `n` octets."""
        if n > self.available:
            raise H2ConnectionError(
                ErrorCode.FLOW_CONTROL_ERROR, "sent more than the window allows"
            )
        self.available -= n

    def credit(self, n: int) -> int:
        """`n` octets were consumed; returns the increment to announce now, mostly 0."""
        if self._credit + n + self.available > self._limit:
            raise ApiMisuseError(f"credit for {n} octets: more than were received")
        self._credit += n
        if self._credit < self._threshold:
            return 0
        increment, self._credit = self._credit, 0
        self.available += increment
        return increment


class HeldCredit:
    """Octets of all streams that wait for slow readers.

    The connection gets credit for them at once, so that a stalled stream does not stop the others.
    Beyond `limit` it does not, so that `limit` and the connection's window bound the memory.
    """

    __slots__ = ("_limit", "_total")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0

    def add(self, n: int) -> int:
        """`n` octets wait; returns how many of them the connection gets credit for now."""
        return n - self._change(n)

    def remove(self, n: int) -> int:
        """`n` octets were delivered; returns the credit that the connection lacks for them."""
        return -self._change(-n)

    def _change(self, n: int) -> int:
        """The change of the number of octets beyond the limit."""
        before = self._total
        self._total = before + n
        return max(self._total - self._limit, 0) - max(before - self._limit, 0)
