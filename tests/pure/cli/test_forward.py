# SPDX-License-Identifier: Apache-2.0
"""`ztctl` against a cluster: agents' admin sockets through the API server's exec."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pure.cli.conftest import Agent, Ztctl
from tests.pure.cli.standin import ApiServer


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as server:
        yield server


@pytest.fixture
def agents(cluster: ApiServer, tmp_path: Path) -> Iterator[dict[str, Agent]]:
    """Two nodes with an agent each."""
    with Agent(tmp_path / "a") as one, Agent(tmp_path / "b") as two:
        found = {"node1": one, "node2": two}
        for node, agent in found.items():
            cluster.agents[node] = agent.run_dir
            agent.answers["/v1/certificates"] = {"certificates": [{"identity": f"of {node}"}]}
        yield found


def test_every_nodes_agent_is_asked_in_its_pod(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "certificate", "list", "-o", "json")
    assert done.exit_code == 0, done.output
    assert [(row["on"], row["identity"]) for row in json.loads(done.stdout)] == [
        ("node1", "of node1"),
        ("node2", "of node2"),
    ]
    assert cluster.execs == [["ztctl", "relay"]] * 2


def test_one_node_is_chosen_by_its_name(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    where = ("--kubeconfig", str(cluster.kubeconfig), "--context", "c", "--node", "node2")
    done = ztctl("certificate", "list", "-o", "json", *where)
    assert [row["on"] for row in json.loads(done.stdout)] == ["node2"]
    assert len(cluster.execs) == 1


def test_answer_larger_than_any_buffer_arrives_whole(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    rows = [{"identity": f"number {number}", "n": "x" * 500} for number in range(4000)]
    agents["node1"].answers["/v1/certificates"] = {"certificates": rows}
    where = ("--kubeconfig", str(cluster.kubeconfig), "--node", "node1")
    done = ztctl(*where, "certificate", "list", "-o", "json")
    assert done.exit_code == 0, done.output
    assert [row["n"] for row in json.loads(done.stdout)] == [row["n"] for row in rows]


def test_unknown_node_is_an_error_that_names_the_known(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "--node", "node9", "status")
    assert done.exit_code == 1
    assert "node1, node2" in done.output


def test_cluster_without_agents_says_what_to_do(ztctl: Ztctl, cluster: ApiServer) -> None:
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "status")
    assert done.exit_code == 3
    assert "ztctl install" in done.output


def test_what_one_node_refuses_is_told_beside_the_others_rows(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    cluster.forbidden.add("node1")
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "certificate", "list")
    assert done.exit_code == 3
    assert "of node2" in done.output
    assert "node1: " in done.output
    assert "403" in done.output


def test_pod_whose_agent_does_not_listen_says_so(
    ztctl: Ztctl, cluster: ApiServer, tmp_path: Path
) -> None:
    cluster.agents["node1"] = tmp_path / "nobody"
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "certificate", "list")
    assert done.exit_code == 3
    assert "no agent at" in done.output


def test_maps_of_a_node_are_read_there(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "--node", "node1", "redirect", "list")
    assert done.exit_code != 0
    assert (
        "kubectl -n ztunnel-system exec agent-node1 -c agent -- ztctl redirect list" in done.output
    )
