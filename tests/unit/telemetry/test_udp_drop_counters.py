# SPDX-License-Identifier: Apache-2.0
"""UDP drops: each is reported once, and the node's totals only grow."""

from __future__ import annotations

import pytest

from ztunnel.ipc.messages import CounterReport, UdpDropCounts
from ztunnel.telemetry.node_counters import NodeCounters, TrafficTotals
from ztunnel.telemetry.udp_drop_counters import UdpDropCounters, UdpDropReason


def dropped(buffer_full: int, flow_limit: int) -> UdpDropCounts:
    worker = UdpDropCounters()
    for _ in range(buffer_full):
        worker.count(UdpDropReason.BUFFER_FULL)
    for _ in range(flow_limit):
        worker.count(UdpDropReason.FLOW_LIMIT)
    counts = worker.flush()
    assert counts is not None
    assert worker.flush() is None
    return counts


def test_reports_of_several_workers_add_up_and_each_counts_once() -> None:
    node = NodeCounters(TrafficTotals(10))
    for instance, seq, counts in (
        (1, 1, dropped(5, 1)),
        (2, 1, dropped(3, 0)),
        (1, 1, dropped(5, 1)),  # sent again
        (1, 2, dropped(2, 0)),
    ):
        node.apply(CounterReport(instance=instance, seq=seq, series=(), udp_drops=counts))
    assert node.udp_drops.by_reason == {"buffer_full": 10, "flow_limit": 1}
    node.worker_exited(1)
    node.apply(CounterReport(instance=3, seq=1, series=(), udp_drops=dropped(2, 0)))
    assert node.udp_drops.by_reason == {"buffer_full": 12, "flow_limit": 1}


@pytest.mark.parametrize("reported", [(-5, -5), (), (-1,), (0, 0, 7)])
def test_malformed_reports_never_decrease_totals(reported: tuple[int, ...]) -> None:
    counters = UdpDropCounters()
    counters.add(dropped(2, 1))
    counters.add(UdpDropCounts(reported))
    assert counters.by_reason == {"buffer_full": 2, "flow_limit": 1}
