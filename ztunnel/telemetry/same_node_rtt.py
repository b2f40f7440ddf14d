# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows of connections between pods of a node and no proxy can: round trips and
retransmits, summed by pair of workloads.

The same bounds as for Istio's metrics: room for so many pairs, the rest counts as overflow, and
pairs of workloads that are gone are forgotten.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field

from ztunnel.telemetry.labels import OVERFLOW, End, is_somebody

# Seconds. From a loopback's round trip to what only a lost segment explains (TCP's least
# retransmission timeout is 0.2 s).
BUCKETS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 0.25, 1.0)
PAIR_LABELS = (
    "source_workload",
    "source_workload_namespace",
    "destination_workload",
    "destination_workload_namespace",
)

WorkloadPair = tuple[End, End]
_OVERFLOW: WorkloadPair = ((OVERFLOW,) * 7, (OVERFLOW,) * 7)


@dataclass
class RttStats:
    """Of one pair: how many round-trip times fell in each bucket (the last: above all), their
    sum in seconds, and segments sent again."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0
    retransmits: int = 0


class RttTable:
    """All pairs. `most` is the room, beside the overflow."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._paths: dict[WorkloadPair, RttStats] = {}
        self._missed: dict[WorkloadPair, float] = {}

    def add(self, pair: WorkloadPair, rtt: float, retransmits: int) -> None:
        """A connection is over: its smoothed round-trip time in seconds, 0 when never measured."""
        path = self._paths.get(pair)
        if path is None:
            pair = pair if len(self._paths) < self._most else _OVERFLOW
            path = self._paths.setdefault(pair, RttStats())
        path.retransmits += retransmits
        if rtt > 0:
            path.counts[bisect_left(BUCKETS, rtt)] += 1
            path.total += rtt

    def retire(self, living: Collection[End], now: float, grace: float) -> None:
        """Forget pairs with a workload that has not been among the living for `grace` seconds."""
        missed = {
            pair
            for pair in self._paths
            if pair != _OVERFLOW and any(is_somebody(end) and end not in living for end in pair)
        }
        self._missed = {pair: self._missed.get(pair, now) for pair in missed}
        for pair, since in list(self._missed.items()):
            if now - since >= grace:
                del self._paths[pair], self._missed[pair]

    def snapshot(self) -> list[tuple[tuple[str, ...], RttStats]]:
        """Pairs by PAIR_LABELS, versions of a workload together; a copy."""
        merged: dict[tuple[str, ...], RttStats] = {}
        for (source, destination), path in self._paths.items():
            into = merged.setdefault((*source[:2], *destination[:2]), RttStats())
            into.counts = [a + b for a, b in zip(into.counts, path.counts, strict=True)]
            into.total += path.total
            into.retransmits += path.retransmits
        return list(merged.items())
