# SPDX-License-Identifier: Apache-2.0
"""DNS queries by how they ended, and how long name servers took: in a worker what was not told yet,
in the agent the sums.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum

from ztunnel.ipc.messages import DnsCounted

# Seconds a name server may take: of the node, of the site, of the world, asked again (1.5 s), TCP.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Outcome(StrEnum):
    """What a client got."""

    MESH = "mesh"  # an answer, or a denial, from the mesh
    FORWARDED = "forwarded"  # the answer of the server that was asked; by TCP: passed on to it
    FAILED = "failed"  # SERVFAIL, or nothing


class Queries:
    """Counts that only grow, until they are taken."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.forward_failures = 0
        self.buckets = [0] * (len(BUCKETS) + 1)  # the last: above all
        self.seconds = 0.0

    def count(self, outcome: Outcome) -> None:
        """A query ended."""
        self.outcomes[outcome] += 1

    def answered(self, seconds: float) -> None:
        """A name server answered a query after so many seconds."""
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds

    def unanswered(self) -> None:
        """A name server was silent, refused, or could not be reached."""
        self.forward_failures += 1

    def take(self) -> DnsCounted | None:
        """What there is to tell, once; None when nothing happened."""
        told = DnsCounted(
            tuple(self.outcomes.values()), self.forward_failures, tuple(self.buckets), self.seconds
        )
        if not any((*told.outcomes, told.forward_failures)):
            return None
        self._clear()
        return told

    def add(self, told: DnsCounted) -> None:
        """What a worker told; counts never go back, whatever it says."""
        for outcome, count in zip(Outcome, told.outcomes, strict=False):
            self.outcomes[outcome] += max(0, count)
        self.forward_failures += max(0, told.forward_failures)
        for index, count in enumerate(told.buckets[: len(self.buckets)]):
            self.buckets[index] += max(0, count)
        self.seconds += max(0.0, told.seconds)
