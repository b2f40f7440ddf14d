# SPDX-License-Identifier: Apache-2.0
"""`ztctl redirect`: rows of a map snapshot, and the events between two snapshots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Agent, Ztctl
from ztctl.node.map_changes import changes
from ztctl.node.map_snapshot import Snapshot, flow_row, pod_rows
from ztctl.node.pod_names import PodNames
from ztctl.targets import Target
from ztunnel.datapath.bpf.layout import Role
from ztunnel.datapath.bpf.maps import FlowEntry, PodCounters, PodEntry
from ztunnel.mesh.model import SocketAddress

POD = PodEntry(7, ("10.244.1.2", "fd00::2"))
FLOW = FlowEntry(
    netns_cookie=7,
    source=SocketAddress("127.0.0.1", 40000),
    port=15001,
    role=Role.REDIRECTED,
    address=SocketAddress("10.96.0.7", 80),
    owner=1,
    start_ns=0,
)
ACCEPTED = replace(
    FLOW, role=Role.PROXY, address=SocketAddress("10.244.9.9", 5), owner=2, port=8080
)


@pytest.fixture
def node(tmp_path: Path) -> Target:
    """A node whose agent is down."""
    return Target("n1", tmp_path, tmp_path / "pins")


def snapshot(
    node: Target,
    *flows: FlowEntry,
    pods: tuple[PodEntry, ...] = (POD,),
    counters: PodCounters | None = None,
    stats: dict[str, int] | None = None,
) -> Snapshot:
    """A snapshot of the maps."""
    return Snapshot(
        node,
        pods,
        {7: counters or PodCounters(0, 0, 0, 0)},
        flows,
        stats or {"inbound_intercepted": 0},
    )


def events(before: Snapshot, after: Snapshot) -> list[tuple[str, str, str]]:
    names = PodNames(after.target)
    return [(each["event"], each["pod"], each["detail"]) for each in changes(before, after, names)]


def test_identical_snapshots_have_no_events(node: Target) -> None:
    assert events(snapshot(node, FLOW), snapshot(node, FLOW)) == []


def test_connections_are_opened_and_closed(node: Target) -> None:
    assert events(snapshot(node, FLOW), snapshot(node, ACCEPTED)) == [
        ("opened", "10.244.1.2", "inbound 127.0.0.1:40000 -> 10.244.9.9:5"),
        ("closed", "10.244.1.2", "outbound 127.0.0.1:40000 -> 10.96.0.7:80"),
    ]


def test_reused_port_is_another_connection(node: Target) -> None:
    again = replace(FLOW, owner=9)
    assert [event for event, _, _ in events(snapshot(node, FLOW), snapshot(node, again))] == [
        "opened",
        "closed",
    ]


def test_short_connections_appear_in_the_counters(node: Target) -> None:
    after = snapshot(node, counters=PodCounters(3, 0, 1, 0), stats={"inbound_intercepted": 2})
    assert events(snapshot(node), after) == [
        ("counted", "10.244.1.2", "redirected+3 refused+1"),
        ("counted", "", "inbound_intercepted+2"),
    ]


def test_pods_are_captured_and_released(node: Target) -> None:
    addresses = "10.244.1.2,fd00::2"
    assert events(snapshot(node, pods=()), snapshot(node)) == [
        ("captured", "10.244.1.2", addresses)
    ]
    assert events(snapshot(node), snapshot(node, pods=())) == [
        ("released", "10.244.1.2", addresses)
    ]


def test_rows_have_addresses_if_names_are_unknown(node: Target) -> None:
    names = PodNames(node)
    (row,) = pod_rows(snapshot(node, FLOW, ACCEPTED, counters=PodCounters(4, 3, 2, 1)), names)
    assert row["pod"] == "10.244.1.2"
    assert (row["redirected"], row["proxy_originated"], row["refused"], row["local"]) == (
        4,
        3,
        2,
        1,
    )
    assert row["open"] == 2
    flow = flow_row(snapshot(node, ACCEPTED), ACCEPTED, names)
    assert (flow["kind"], flow["original_dst"], flow["to"]) == ("inbound", "10.244.9.9:5", 8080)


def test_rows_have_names_from_the_agent(agent: Agent) -> None:
    agent.answers["/v1/workloads"] = {
        "workloads": [{"namespace": "default", "name": "client", "addresses": ["fd00::2"]}]
    }
    node = Target("n1", agent.run_dir, agent.run_dir)
    (row,) = pod_rows(snapshot(node), PodNames(node))
    assert row["pod"] == "default/client"


def test_missing_pins_are_an_error_with_directory_and_hint(ztctl: Ztctl, tmp_path: Path) -> None:
    done = ztctl("--pin-dir", str(tmp_path), "redirect", "list")
    assert done.exit_code == 3
    assert str(tmp_path / "maps") in done.output
    assert "start the agent" in done.output
