# SPDX-License-Identifier: Apache-2.0
"""TCP round-trip times and retransmissions of same-node bypass connections, by workload pair.

The kernel reports them when a connection ends; no proxy sees these connections. The limits are the
same as for Istio's metrics: excess pairs are aggregated, and pairs of deleted workloads expire.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field

from ztunnel.telemetry.labels import OVERFLOW, WorkloadLabels, is_known_workload

# Seconds. From the round trip of a loopback to a retransmission timeout (TCP's minimum is 0.2 s).
BUCKETS_S = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 0.25, 1.0)
PAIR_LABELS = (
    "source_workload",
    "source_workload_namespace",
    "destination_workload",
    "destination_workload_namespace",
)

WorkloadPair = tuple[WorkloadLabels, WorkloadLabels]
_OVERFLOW: WorkloadPair = ((OVERFLOW,) * 7, (OVERFLOW,) * 7)


@dataclass
class RttStats:
    """One pair: connections by bucket of their round-trip time (not cumulative; the last bucket is
    +Inf), the sum of these times in seconds, and retransmitted segments."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total: float = 0.0
    retransmits: int = 0


class RttTable:
    """All pairs. `max_pairs` is the limit, without the overflow pair."""

    def __init__(self, max_pairs: int) -> None:
        self._max_pairs = max_pairs
        self._pairs: dict[WorkloadPair, RttStats] = {}
        self._missing_since: dict[WorkloadPair, float] = {}

    def add(self, pair: WorkloadPair, rtt: float, retransmits: int) -> None:
        """Add a closed connection. `rtt` is its smoothed RTT in seconds, 0 if not measured."""
        stats = self._pairs.get(pair)
        if stats is None:
            pair = pair if len(self._pairs) < self._max_pairs else _OVERFLOW
            stats = self._pairs.setdefault(pair, RttStats())
        stats.retransmits += retransmits
        if rtt > 0:
            stats.counts[bisect_left(BUCKETS_S, rtt)] += 1
            stats.total += rtt

    def expire(self, existing: Collection[WorkloadLabels], now: float, ttl: float) -> None:
        """Remove pairs whose workload has not been among `existing` for `ttl` seconds."""
        missing = {
            pair
            for pair in self._pairs
            if pair != _OVERFLOW
            and any(is_known_workload(peer) and peer not in existing for peer in pair)
        }
        self._missing_since = {pair: self._missing_since.get(pair, now) for pair in missing}
        for pair, since in list(self._missing_since.items()):
            if now - since >= ttl:
                del self._pairs[pair], self._missing_since[pair]

    def snapshot(self) -> list[tuple[tuple[str, ...], RttStats]]:
        """A copy, by PAIR_LABELS: revisions of a workload are merged."""
        merged: dict[tuple[str, ...], RttStats] = {}
        for (source, destination), stats in self._pairs.items():
            into = merged.setdefault((*source[:2], *destination[:2]), RttStats())
            into.counts = [a + b for a, b in zip(into.counts, stats.counts, strict=True)]
            into.total += stats.total
            into.retransmits += stats.retransmits
        return list(merged.items())
