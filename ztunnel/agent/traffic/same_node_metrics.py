# SPDX-License-Identifier: Apache-2.0
"""Connections that went without the proxy, in the same metrics as those that did not.

Both ends are this node's, so each counts as both proxies would have counted it. The kernel tells
of a connection when it is over, so it is opened and closed at once. Thousands a second must not
take the CPU that they would use themselves: they are summed by pair, and the totals, whose keys are
twenty labels, see one row of each pair and look.
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

MOST_KNOWN = 4096  # pairs whose labels are remembered


class _Pair:
    """Two workloads, and their connections that the totals have not seen."""

    __slots__ = ("ends", "flagged", "label_sets", "path", "received", "sent")

    def __init__(self, source: Workload | None, destination: Workload | None) -> None:
        self.ends = source, destination  # kept alive: nobody else gets their place in memory
        principals = (
            source.identity if source else "",
            destination.identity if destination else "",
        )
        self.label_sets = tuple(
            labels.connection_labels(reporter, source, destination, principals=principals)
            for reporter in Reporter
        )
        self.path: WorkloadPair = (
            labels.workload_labels(source),
            labels.workload_labels(destination),
        )
        self.sent = self.received = 0
        self.flagged: dict[Flag, int] = {}  # how many ended so

    def rows(self) -> Iterator[SeriesCounts]:
        """What there is to tell; begins anew."""
        opened = sum(self.flagged.values())
        for each in self.label_sets:
            yield SeriesCounts(each, opened=opened, sent=self.sent, received=self.received)
            for flag, count in self.flagged.items():
                failed = count if flag is Flag.CONNECT else 0
                yield SeriesCounts(labels.with_flag(each, flag), closed=count, failed=failed)
        self.sent = self.received = 0
        self.flagged.clear()


class KernelCounts:
    """Adds what the kernel tells to the node's totals."""

    def __init__(self, totals: TrafficTotals, paths: RttTable) -> None:
        self._totals = totals
        self._paths = paths
        self._known: dict[tuple[int, int], _Pair] = {}

    def add(
        self,
        event: ConnectionEvent,
        source: Workload | None,
        destination: Workload | None,
        *,
        denied: bool = False,
    ) -> None:
        """A connection by verdict is over; `denied` when a change of policy ended it. `tell` must
        follow."""
        pair = self._known.get((id(source), id(destination)))
        if pair is None:
            pair = self._meet(source, destination)
        pair.sent += event.sent
        pair.received += event.received
        flag = Flag.NONE
        if denied:
            flag = Flag.DENY
        elif event.close_reason is CloseReason.REFUSED:
            flag = Flag.CONNECT
        pair.flagged[flag] = pair.flagged.get(flag, 0) + 1
        self._paths.add(pair.path, event.srtt_us / 1e6, event.retransmits)

    def tell(self) -> None:
        """Give the totals what was added."""
        for pair in self._known.values():
            if pair.flagged:
                for row in pair.rows():
                    self._totals.add(row)

    def _meet(self, source: Workload | None, destination: Workload | None) -> _Pair:
        if len(self._known) >= MOST_KNOWN:
            self.tell()
            self._known.clear()
        pair = self._known[id(source), id(destination)] = _Pair(source, destination)
        return pair
