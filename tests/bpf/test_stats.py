# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of programs and maps."""

from __future__ import annotations

import ctypes
import os

from tests.bpf.netns_fixture import Pocket
from ztunnel.datapath.bpf import layout, stats
from ztunnel.datapath.bpf.syscall import LOOKUP_BATCH_ENTRIES, RawMap
from ztunnel.ipc.messages import ListenerKind

ENTRIES = 2 * LOOKUP_BATCH_ENTRIES + 7


def _flows(pocket: Pocket) -> RawMap:
    key, value = ctypes.sizeof(layout.FlowKey), ctypes.sizeof(layout.Flow)
    return RawMap.open(pocket.pin_dir / "maps" / "zt_flows", key, value, read_only=False)


def test_maps_are_counted_in_batches_as_one_by_one(fresh_pocket: Pocket) -> None:
    flows = _flows(fresh_pocket)
    try:
        before = fresh_pocket.maps.flow_count()
        value = bytes(ctypes.sizeof(layout.Flow))
        for number in range(ENTRIES):
            flows.update(bytes(layout.FlowKey(netns=number + 1)), value)
        assert fresh_pocket.maps.flow_count() == before + ENTRIES == len(set(flows.keys()))
        (found,) = [
            each for each in stats.map_occupancy(fresh_pocket.pin_dir) if each.name == "zt_flows"
        ]
        assert (found.entries, found.room) == (before + ENTRIES, 262144)
    finally:
        flows.close()


def test_what_can_be_full_is_listed_with_its_room(pocket: Pocket) -> None:
    found = {each.name: each for each in stats.map_occupancy(pocket.pin_dir)}
    assert {
        "zt_pods",
        "zt_flows",
        "zt_same_node_allow",
        "zt_same_node_conns",
        "zt_node_addrs",
    } <= set(found)
    assert "zt_stats" not in found
    assert (found["zt_pods"].entries, found["zt_pods"].room) == (1, 1024)


def _runs(pocket: Pocket) -> dict[str, stats.ProgramRuns]:
    return {each.program: each for each in stats.program_runs(pocket.pin_dir)}


def test_programs_are_timed_while_somebody_asks(pocket: Pocket) -> None:
    asked = stats.enable_run_stats()
    try:
        before = _runs(pocket)["zt_connect4"]
        for _ in range(3):
            with pocket.app_socket() as app:
                app.connect(("10.5.5.5", 80))
                pocket.accepted(ListenerKind.OUTBOUND4).close()
        after = _runs(pocket)
    finally:
        os.close(asked)
    assert after["zt_connect4"].count == before.count + 3
    assert after["zt_connect4"].seconds > before.seconds
    assert {"zt_sockops", "zt_sk_lookup"} <= set(after)
