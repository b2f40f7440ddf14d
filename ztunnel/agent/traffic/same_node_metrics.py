# SPDX-License-Identifier: Apache-2.0
"""Counts bypassed connections in the same metrics as those that use the proxy.

Both peers are on this node, so each connection counts as both proxies would have counted it. The
kernel reports a connection when it is closed, so it counts as opened and closed at once. To limit
the CPU time for thousands of connections per second, they are summed by pair; the totals, whose
keys are twenty labels, get one row per pair and flush.
"""

from __future__ import annotations

from collections.abc import Iterator

from ztunnel.datapath.bpf.layout import CloseReason
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent
from ztunnel.ipc.messages import SeriesCounts
from ztunnel.mesh.model import Workload
from ztunnel.telemetry import labels
from ztunnel.telemetry.labels import Reporter
from ztunnel.telemetry.node_counters import TrafficTotals
from ztunnel.telemetry.response_flags import Flag
from ztunnel.telemetry.same_node_rtt import RttTable, WorkloadPair

MAX_PAIRS = 4096  # whose labels are cached


class _Pair:
    """Two workloads, and the counts of their connections since the last flush."""

    __slots__ = ("closed", "label_sets", "peers", "received", "rtt_key", "sent")

    def __init__(self, source: Workload | None, destination: Workload | None) -> None:
        self.peers = source, destination  # alive, so that their ids are not reused
        principals = (
            source.identity if source else "",
            destination.identity if destination else "",
        )
        self.label_sets = tuple(
            labels.connection_labels(reporter, source, destination, principals=principals)
            for reporter in Reporter
        )
        self.rtt_key: WorkloadPair = (
            labels.workload_labels(source),
            labels.workload_labels(destination),
        )
        self.sent = self.received = 0
        self.closed: dict[Flag, int] = {}

    def rows(self) -> Iterator[SeriesCounts]:
        """The counts; resets them."""
        opened = sum(self.closed.values())
        for each in self.label_sets:
            yield SeriesCounts(each, opened=opened, sent=self.sent, received=self.received)
            for flag, count in self.closed.items():
                failed = count if flag is Flag.CONNECT else 0
                yield SeriesCounts(labels.with_flag(each, flag), closed=count, failed=failed)
        self.sent = self.received = 0
        self.closed.clear()


class SameNodeMetrics:
    """Adds bypassed connections to the node's totals."""

    def __init__(self, totals: TrafficTotals, rtt: RttTable) -> None:
        self._totals = totals
        self._rtt = rtt
        self._pairs: dict[tuple[int, int], _Pair] = {}

    def add(
        self,
        event: ConnectionEvent,
        source: Workload | None,
        destination: Workload | None,
        *,
        denied: bool = False,
    ) -> None:
        """Count a closed connection, until the next `flush`; `denied` if a change of policy
        terminated it."""
        pair = self._pairs.get((id(source), id(destination)))
        if pair is None:
            pair = self._new_pair(source, destination)
        pair.sent += event.sent
        pair.received += event.received
        flag = Flag.NONE
        if denied:
            flag = Flag.DENY
        elif event.close_reason is CloseReason.REFUSED:
            flag = Flag.CONNECT
        pair.closed[flag] = pair.closed.get(flag, 0) + 1
        self._rtt.add(pair.rtt_key, event.srtt_us / 1e6, event.retransmits)

    def flush(self) -> None:
        """Add the counts to the totals."""
        for pair in self._pairs.values():
            if pair.closed:
                for row in pair.rows():
                    self._totals.add(row)

    def _new_pair(self, source: Workload | None, destination: Workload | None) -> _Pair:
        if len(self._pairs) >= MAX_PAIRS:
            self.flush()
            self._pairs.clear()
        pair = self._pairs[id(source), id(destination)] = _Pair(source, destination)
        return pair
