# SPDX-License-Identifier: Apache-2.0
"""Flow control windows (RFC 9113 5.2 and 6.9): one class for each direction, and what is held.

Windows serve a stream as well as the connection.
"""

from __future__ import annotations

from ztunnel.hbone import constants
from ztunnel.hbone.errors import ApiMisuseError, ErrorCode, H2ConnectionError


class SendWindow:
    """What the peer lets us send. Below zero after it shrank its initial window."""

    __slots__ = ("available",)

    def __init__(self, available: int) -> None:
        self.available = available

    def widen(self, increment: int) -> bool:
        """Add the peer's credit (negative: take it back); says if none became some."""
        before = self.available
        self.available = before + increment
        if self.available > constants.MAX_WINDOW_BYTES:
            raise H2ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "window widened beyond 2^31-1")
        return before <= 0 < self.available


class ReceiveWindow:
    """What we let the peer send.

    limit = available + what the caller still holds + credit not yet announced
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
        """`n` octets were used; returns the increment to announce now, mostly 0."""
        if self._credit + n + self.available > self._limit:
            raise ApiMisuseError(f"{n} octets given back: more than were received")
        self._credit += n
        if self._credit < self._threshold:
            return 0
        increment, self._credit = self._credit, 0
        self.available += increment
        return increment


class HeldCredit:
    """Octets of all streams that wait for slow readers.

    The connection's window is given back for them at once, so that a stalled stream does not
    stop its neighbours; but not beyond `limit`, so that memory stays bounded by it and the window.
    """

    __slots__ = ("_limit", "_total")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0

    def add(self, n: int) -> int:
        """`n` octets wait; returns for how many the connection gets credit now."""
        return n - self._change(n)

    def remove(self, n: int) -> int:
        """`n` octets left; returns for how many the connection gets the credit it still lacks."""
        return -self._change(-n)

    def _change(self, n: int) -> int:
        """By how much the octets beyond the limit grow."""
        before = self._total
        self._total = before + n
        return max(self._total - self._limit, 0) - max(before - self._limit, 0)
