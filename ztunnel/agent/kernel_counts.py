# SPDX-License-Identifier: Apache-2.0
"""Connections that went without the proxy, in the same metrics as those that did not.

Both ends are this node's, so each counts as both proxies would have counted it. The kernel tells
of a connection when it is over, so it is opened and closed at once. May import
`ztunnel.datapath.events`, `ztunnel.telemetry`, mesh.
"""

from __future__ import annotations

from ztunnel.datapath.events import Ended
from ztunnel.datapath.layout import Ending
from ztunnel.link.messages import Count
from ztunnel.mesh.model import Workload
from ztunnel.telemetry import labels
from ztunnel.telemetry.flags import Flag
from ztunnel.telemetry.labels import Labels, Reporter
from ztunnel.telemetry.latency import Pair, Paths
from ztunnel.telemetry.totals import Totals

MOST_KNOWN = 4096  # pairs whose labels are remembered


class KernelCounts:
    """Adds what the kernel tells to the node's totals."""

    def __init__(self, totals: Totals, paths: Paths) -> None:
        self._totals = totals
        self._paths = paths
        self._known: dict[tuple[int, int], tuple[_Known, tuple[Labels, ...], Pair]] = {}

    def add(
        self,
        event: Ended,
        source: Workload | None,
        destination: Workload | None,
        *,
        denied: bool = False,
    ) -> None:
        """A connection by verdict is over; `denied` when a change of policy ended it."""
        label_sets, pair = self._labels(source, destination)
        failed = event.ending is Ending.REFUSED
        flag = Flag.DENY if denied else Flag.CONNECT if failed else Flag.NONE
        for each in label_sets:
            self._totals.add(Count(each, opened=1, sent=event.sent, received=event.received))
            self._totals.add(Count(labels.with_flag(each, flag), closed=1, failed=failed))
        self._paths.add(pair, event.srtt_us / 1e6, event.retransmits)

    def _labels(
        self, source: Workload | None, destination: Workload | None
    ) -> tuple[tuple[Labels, ...], Pair]:
        key = id(source), id(destination)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            principals = tuple(one.identity if one else "" for one in (source, destination))
            known = (
                (source, destination),  # kept alive: nobody else gets their place in memory
                tuple(
                    labels.traffic(
                        reporter,
                        source,
                        destination,
                        principals=(principals[0], principals[1]),
                    )
                    for reporter in Reporter
                ),
                (labels.end(source), labels.end(destination)),
            )
            self._known[key] = known
        return known[1:]


_Known = tuple[Workload | None, Workload | None]
