# SPDX-License-Identifier: Apache-2.0
"""When to request a certificate: a pure state machine; clock and jitter are parameters.

                   issued                    half life
    PENDING ------------------> VALID ----------------------> DUE
      |  ^                        ^                          |   ^
      |  | delay over             +--------- issued ---------+   | delay over
      v  |                        |                          v   |
     BACKOFF ------------------ issued ------------------ BACKOFF (valid certificate in use)

A failure leads to BACKOFF for a growing delay. A valid certificate stays in use until `not_after`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

RENEW_FRACTION = 0.5  # of the remaining lifetime at issuance
JITTER_FRACTION = 0.05  # of the same, so that the certificates of a node are not all due at once
FIRST_RETRY_S = 0.5  # after the first failure
MAX_RETRY_S = 60.0


class Phase(StrEnum):
    """The state of a certificate."""

    PENDING = "pending"
    VALID = "valid"
    DUE = "due"
    BACKOFF = "backoff"


@dataclass(frozen=True)
class RenewalSchedule:
    """One identity's schedule. Times are Unix seconds; `not_after` is 0 without a certificate."""

    attempt_at: float
    not_after: float = 0.0
    failures: int = 0
    issued_count: int = 0

    def phase(self, now: float) -> Phase:
        """The state at `now`."""
        if self.failures and now < self.attempt_at:
            return Phase.BACKOFF
        if not self.has_valid(now):
            return Phase.PENDING
        return Phase.VALID if now < self.attempt_at else Phase.DUE

    def has_valid(self, now: float) -> bool:
        """Return whether a valid certificate is available."""
        return now < self.not_after

    def due_in(self, now: float) -> float:
        """Return the seconds until the next attempt; 0 if it is due, as after expiry."""
        if not self.failures and not self.has_valid(now):
            return 0.0
        return max(0.0, self.attempt_at - now)

    def issued(self, now: float, not_after: float, jitter: float) -> RenewalSchedule:
        """Record an issued certificate. `jitter` in [-1, 1] varies the renewal time."""
        remaining = max(0.0, not_after - now)
        return RenewalSchedule(
            attempt_at=now + remaining * (RENEW_FRACTION + JITTER_FRACTION * jitter),
            not_after=not_after,
            issued_count=self.issued_count + 1,
        )

    def failed(self, now: float, jitter: float) -> RenewalSchedule:
        """Record a failure: double the delay, but retry before expiry."""
        delay = min(MAX_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self.failures, 16))
        delay *= 1 + JITTER_FRACTION * jitter
        if self.has_valid(now):
            delay = min(delay, max(FIRST_RETRY_S, (self.not_after - now) / 2))
        return replace(self, attempt_at=now + delay, failures=self.failures + 1)

    def reset_backoff(self, now: float) -> RenewalSchedule:
        """Make the next attempt due at once: the cause of the failures is gone."""
        return replace(self, attempt_at=now, failures=0) if self.failures else self
