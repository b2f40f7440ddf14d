# SPDX-License-Identifier: Apache-2.0
"""A token bucket that limits input which costs work but carries no payload."""

from __future__ import annotations


class TokenBucket:
    """Allows `burst` at once, then `per_second`. The caller passes the time."""

    __slots__ = ("_burst", "_per_second", "_tokens", "_updated_at")

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._tokens = self._burst
        self._updated_at: float | None = None

    def spend(self, now: float, tokens: float = 1.0) -> bool:
        """Remove tokens; False if there are too few. A time in the past adds no tokens."""
        if self._updated_at is not None and now > self._updated_at:
            refill = (now - self._updated_at) * self._per_second
            self._tokens = min(self._burst, self._tokens + refill)
        self._updated_at = now
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True
