# SPDX-License-Identifier: Apache-2.0
"""When to ask for a certificate: a pure state machine, its clock and jitter passed in.

                  issued                     half life
    WANTED ------------------> FRESH ------------------------> DUE
      |  ^                       ^                            |   ^
      |  | delay over            +---------- issued ----------+   | delay over
      v  |                       |                            v   |
     WAITING ------------------ issued ------------------- WAITING (old one still serves)

A failure leads to WAITING for a growing delay; what is valid stays in use until `not_after`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

HALF_LIFE = 0.5  # of the time that is left when a certificate is issued
SPREAD = 0.05  # of the same: so that a node's certificates do not fall due at once
FIRST_DELAY = 0.5  # seconds after a first failure
LONGEST_DELAY = 60.0


class Phase(StrEnum):
    """What a rotation is about to do."""

    WANTED = "wanted"
    FRESH = "fresh"
    DUE = "due"
    WAITING = "waiting"


@dataclass(frozen=True)
class Rotation:
    """One identity's schedule. Times are Unix seconds; `not_after` is 0 without a certificate."""

    attempt_at: float
    not_after: float = 0.0
    failures: int = 0
    issued_count: int = 0

    def phase(self, now: float) -> Phase:
        """The state at `now`."""
        if self.failures and now < self.attempt_at:
            return Phase.WAITING
        if not self.has_valid(now):
            return Phase.WANTED
        return Phase.FRESH if now < self.attempt_at else Phase.DUE

    def has_valid(self, now: float) -> bool:
        """Whether there is a certificate to serve with."""
        return now < self.not_after

    def due_in(self, now: float) -> float:
        """Seconds until the next attempt; 0 when it is time. An expired one is always due."""
        if not self.failures and not self.has_valid(now):
            return 0.0
        return max(0.0, self.attempt_at - now)

    def issued(self, now: float, not_after: float, jitter: float) -> Rotation:
        """A certificate came. `jitter` in [-1, 1] moves the renewal around the half life."""
        left = max(0.0, not_after - now)
        return Rotation(
            attempt_at=now + left * (HALF_LIFE + SPREAD * jitter),
            not_after=not_after,
            issued_count=self.issued_count + 1,
        )

    def failed(self, now: float, jitter: float) -> Rotation:
        """An attempt failed: wait twice as long as before, but ask again before expiry."""
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.failures, 16))
        delay *= 1 + SPREAD * jitter
        if self.has_valid(now):
            delay = min(delay, max(FIRST_DELAY, (self.not_after - now) / 2))
        return replace(self, attempt_at=now + delay, failures=self.failures + 1)

    def forgiven(self, now: float) -> Rotation:
        """What made attempts fail is over: do not wait for the next one."""
        return replace(self, attempt_at=now, failures=0) if self.failures else self
