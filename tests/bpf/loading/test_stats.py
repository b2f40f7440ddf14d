# SPDX-License-Identifier: Apache-2.0
"""Statistics of programs and maps."""

from __future__ import annotations

import ctypes
import os

from tests.bpf.netns_fixture import BpfNode
from ztunnel.datapath.bpf import layout, stats
from ztunnel.datapath.bpf.syscall import LOOKUP_BATCH_ENTRIES, RawMap
from ztunnel.ipc.messages import ListenerKind

ENTRIES = 2 * LOOKUP_BATCH_ENTRIES + 7


def _flows(node: BpfNode) -> RawMap:
    key, value = ctypes.sizeof(layout.FlowKey), ctypes.sizeof(layout.Flow)
    return RawMap.open(node.pin_dir / "maps" / "zt_flows", key, value, read_only=False)


def test_batched_count_equals_the_number_of_entries(fresh_node: BpfNode) -> None:
    flows = _flows(fresh_node)
    try:
        before = fresh_node.maps.flow_count()
        value = bytes(ctypes.sizeof(layout.Flow))
        for number in range(ENTRIES):
            flows.update(bytes(layout.FlowKey(netns=number + 1)), value)
        assert fresh_node.maps.flow_count() == before + ENTRIES == len(set(flows.keys()))
        (found,) = [
            each for each in stats.map_occupancy(fresh_node.pin_dir) if each.name == "zt_flows"
        ]
        assert (found.entries, found.room) == (before + ENTRIES, 262144)
    finally:
        flows.close()


def test_hash_maps_are_listed_with_their_capacity(node: BpfNode) -> None:
    found = {each.name: each for each in stats.map_occupancy(node.pin_dir)}
    assert {
        "zt_pods",
        "zt_flows",
        "zt_same_node_allow",
        "zt_same_node_conns",
        "zt_node_addrs",
    } <= set(found)
    assert "zt_stats" not in found
    assert (found["zt_pods"].entries, found["zt_pods"].room) == (1, 1024)


def _runs(node: BpfNode) -> dict[str, stats.ProgramRuns]:
    return {each.program: each for each in stats.program_runs(node.pin_dir)}


def test_programs_are_timed_while_run_stats_are_enabled(node: BpfNode) -> None:
    run_stats = stats.enable_run_stats()
    try:
        before = _runs(node)["zt_connect4"]
        for _ in range(3):
            with node.app_socket() as app:
                app.connect(("10.5.5.5", 80))
                node.accepted(ListenerKind.OUTBOUND4).close()
        after = _runs(node)
    finally:
        os.close(run_stats)
    assert after["zt_connect4"].count == before.count + 3
    assert after["zt_connect4"].seconds > before.seconds
    assert {"zt_sockops", "zt_sk_lookup"} <= set(after)
