# SPDX-License-Identifier: Apache-2.0
"""Counters of DNS queries by outcome, and the latency of upstream name servers.

A worker's counters hold what it has not reported yet; the agent's hold the node's totals.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum

from ztunnel.ipc.messages import DnsCounts

# Seconds. Name servers on the node, in the data center, across the Internet; a retransmission
# (1.5 s), and a retry by TCP.
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Outcome(StrEnum):
    """How a query ended for the client."""

    MESH = "mesh"  # answered or denied by the mesh
    FORWARDED = "forwarded"  # answered by the original server; by TCP: passed on to it
    FAILED = "failed"  # SERVFAIL, or no answer


class DnsCounters:
    """Counters that only grow until they are flushed."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.forward_failures = 0
        self.buckets = [0] * (len(BUCKETS_S) + 1)  # not cumulative; the last one is +Inf
        self.seconds = 0.0
        self.dropped_addresses = 0
        self.evicted_answers = 0

    def count_query(self, outcome: Outcome) -> None:
        """Count a query that ended."""
        self.outcomes[outcome] += 1

    def observe_forward(self, seconds: float) -> None:
        """Record the time until a name server answered a forwarded query."""
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds

    def count_forward_failure(self) -> None:
        """Count a query that a name server did not answer, refused, or could not receive."""
        self.forward_failures += 1

    def count_dropped_addresses(self, number: int) -> None:
        """Count addresses of the cluster that a gateway's Envoy was not shown."""
        self.dropped_addresses += number

    def count_evicted_answer(self) -> None:
        """Count a name that access logs cannot show any more: the pod resolves too many."""
        self.evicted_answers += 1

    def flush(self) -> DnsCounts | None:
        """Return the counts since the last flush and reset them; None if there are none."""
        counts = DnsCounts(
            tuple(self.outcomes.values()),
            self.forward_failures,
            tuple(self.buckets),
            self.seconds,
            self.dropped_addresses,
            self.evicted_answers,
        )
        if not any((*counts.outcomes, counts.forward_failures, counts.evicted_answers)):
            return None
        self._reset()
        return counts

    def add(self, counts: DnsCounts) -> None:
        """Add a worker's counts. Negative values are ignored: totals never decrease."""
        for outcome, count in zip(Outcome, counts.outcomes, strict=False):
            self.outcomes[outcome] += max(0, count)
        self.forward_failures += max(0, counts.forward_failures)
        for index, count in enumerate(counts.buckets[: len(self.buckets)]):
            self.buckets[index] += max(0, count)
        self.seconds += max(0.0, counts.seconds)
        self.dropped_addresses += max(0, counts.dropped_addresses)
        self.evicted_answers += max(0, counts.evicted_answers)
