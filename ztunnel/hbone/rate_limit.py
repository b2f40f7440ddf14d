# SPDX-License-Identifier: Apache-2.0
"""A budget for what costs us work and carries nothing."""

from __future__ import annotations


class TokenBucket:
    """A token bucket: `burst` at once, then `per_second`. The caller brings the time."""

    __slots__ = ("_burst", "_left", "_per_second", "_then")

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._left = self._burst
        self._then: float | None = None

    def spend(self, now: float) -> bool:
        """Take one; False when there was none. Times that go backwards add nothing."""
        if self._then is not None and now > self._then:
            refill = (now - self._then) * self._per_second
            self._left = min(self._burst, self._left + refill)
        self._then = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
