# SPDX-License-Identifier: Apache-2.0
"""What two readings of the maps say happened between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Agent, Ztctl
from ztctl.commands.redirect import Snapshot, changes, flow_row, pod_rows
from ztctl.pod_names import PodNames
from ztctl.targets import Installation
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
    born_ns=0,
)
SERVED = replace(FLOW, role=Role.OWN, address=SocketAddress("10.244.9.9", 5), owner=2, port=8080)


@pytest.fixture
def node(tmp_path: Path) -> Installation:
    """A node whose agent is down."""
    return Installation("n1", tmp_path, tmp_path / "pins")


def shot(
    node: Installation,
    *flows: FlowEntry,
    pods: tuple[PodEntry, ...] = (POD,),
    counters: PodCounters | None = None,
    stats: dict[str, int] | None = None,
) -> Snapshot:
    """A reading of the maps."""
    return Snapshot(
        node, pods, {7: counters or PodCounters(0, 0, 0, 0)}, flows, stats or {"stolen": 0}
    )


def seen(before: Snapshot, after: Snapshot) -> list[tuple[str, str, str]]:
    names = PodNames(after.installation)
    return [(each["event"], each["pod"], each["detail"]) for each in changes(before, after, names)]


def test_nothing_changed_says_nothing(node: Installation) -> None:
    assert seen(shot(node, FLOW), shot(node, FLOW)) == []


def test_connections_that_come_and_go(node: Installation) -> None:
    assert seen(shot(node, FLOW), shot(node, SERVED)) == [
        ("opened", "10.244.1.2", "inbound 127.0.0.1:40000 -> 10.244.9.9:5"),
        ("closed", "10.244.1.2", "outbound 127.0.0.1:40000 -> 10.96.0.7:80"),
    ]


def test_a_port_used_again_is_another_connection(node: Installation) -> None:
    again = replace(FLOW, owner=9)
    assert [event for event, _, _ in seen(shot(node, FLOW), shot(node, again))] == [
        "opened",
        "closed",
    ]


def test_short_connections_show_in_the_counters(node: Installation) -> None:
    after = shot(node, counters=PodCounters(3, 0, 1, 0), stats={"stolen": 2})
    assert seen(shot(node), after) == [
        ("counted", "10.244.1.2", "redirected+3 refused+1"),
        ("counted", "", "stolen+2"),
    ]


def test_pods_are_captured_and_released(node: Installation) -> None:
    addresses = "10.244.1.2,fd00::2"
    assert seen(shot(node, pods=()), shot(node)) == [("captured", "10.244.1.2", addresses)]
    assert seen(shot(node), shot(node, pods=())) == [("released", "10.244.1.2", addresses)]


def test_rows_have_addresses_when_nobody_knows_names(node: Installation) -> None:
    names = PodNames(node)
    (row,) = pod_rows(shot(node, FLOW, SERVED, counters=PodCounters(4, 3, 2, 1)), names)
    assert row["pod"] == "10.244.1.2"
    assert (row["redirected"], row["own"], row["refused"], row["local"]) == (4, 3, 2, 1)
    assert row["open"] == 2
    flow = flow_row(shot(node, SERVED), SERVED, names)
    assert (flow["kind"], flow["original"], flow["to"]) == ("inbound", "10.244.9.9:5", 8080)


def test_rows_have_names_when_the_agent_knows_them(agent: Agent) -> None:
    agent.answers["/v1/workloads"] = {
        "workloads": [{"namespace": "default", "name": "client", "addresses": ["fd00::2"]}]
    }
    node = Installation("n1", agent.run_dir, agent.run_dir)
    (row,) = pod_rows(shot(node), PodNames(node))
    assert row["pod"] == "default/client"


def test_no_pins_name_the_directory_and_the_mend(ztctl: Ztctl, tmp_path: Path) -> None:
    done = ztctl("--pin-dir", str(tmp_path), "redirect", "list")
    assert done.exit_code == 3
    assert str(tmp_path / "maps") in done.output
    assert "start the agent" in done.output
