# SPDX-License-Identifier: Apache-2.0
"""Flow control windows (RFC 9113 5.2 and 6.9), of a stream or of the connection."""

from __future__ import annotations

from ztunnel.hbone import constants
from ztunnel.hbone.buffer_budget import BufferShare
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

    __slots__ = ("_credit", "_threshold", "available", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
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
        if self._credit + n + self.available > self.limit:
            raise ApiMisuseError(f"credit for {n} octets: more than were received")
        self._credit += n
        if self._credit < self._threshold:
            return 0
        increment, self._credit = self._credit, 0
        self.available += increment
        return increment

    def grow(self, limit: int) -> int:
        """Raise the limit; returns the increment to announce now."""
        increment = limit - self.limit
        self.limit = limit
        self._threshold = limit // constants.CREDIT_FRACTION
        self.available += increment
        return increment


class HeldCredit:
    """Octets of all streams of a connection that wait for slow readers.

    The connection gets credit for them at once, so that a stalled stream does not stop the others,
    as far as `limit` and the pod's share of the worker's memory allow. The octets without credit
    fit the connection's window, which bounds the memory.
    """

    __slots__ = ("_credited", "_limit", "_share", "_uncredited")

    def __init__(self, limit: int, share: BufferShare) -> None:
        self._limit = limit
        self._share = share
        self._credited = 0
        self._uncredited = 0

    def add(self, n: int) -> int:
        """`n` octets wait; returns how many of them the connection gets credit for now."""
        credited = self._share.take(min(n, self._limit - self._credited))
        self._credited += credited
        self._uncredited += n - credited
        return credited

    def remove(self, n: int) -> int:
        """`n` octets were delivered; returns the credit that the connection lacks for them."""
        owed = min(n, self._uncredited)
        self._uncredited -= owed
        self._credited -= n - owed
        self._share.give_back(n - owed)
        return owed

    def release(self) -> None:
        """The connection ended."""
        self._share.give_back(self._credited)
        self._credited = self._uncredited = 0
