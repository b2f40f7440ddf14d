# SPDX-License-Identifier: Apache-2.0
"""`ztctl` against a cluster: agents' admin sockets through exec or port-forward."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Agent, Ztctl
from tests.unit.cli.fake_apiserver import ApiServer
from ztunnel.agent.api import remote_admin_server as agent_doorway


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


# By port-forward


@pytest.fixture
def doors(cluster: ApiServer, agents: dict[str, Agent]) -> dict[str, Agent]:
    """The agents, each with a port too."""
    for node in agents:
        cluster.open_door(node)
    return agents


def _list(cluster: ApiServer, *options: str) -> tuple[str, ...]:
    return ("--kubeconfig", str(cluster.kubeconfig), *options, "certificate", "list", "-o", "json")


def test_agents_that_name_a_port_are_asked_there(
    ztctl: Ztctl, cluster: ApiServer, doors: dict[str, Agent]
) -> None:
    done = ztctl(*_list(cluster))
    assert done.exit_code == 0, done.output
    assert [row["identity"] for row in json.loads(done.stdout)] == ["of node1", "of node2"]
    assert cluster.execs == []
    assert len(cluster.forwards) == len(set(cluster.tokens.values())) == 2  # a token each


def test_large_answer_comes_whole_through_a_port(
    ztctl: Ztctl, cluster: ApiServer, doors: dict[str, Agent]
) -> None:
    rows = [{"identity": f"number {number}", "n": "x" * 500} for number in range(4000)]
    doors["node1"].answers["/v1/certificates"] = {"certificates": rows}
    done = ztctl(*_list(cluster, "--node", "node1", "--via", "port-forward"))
    assert done.exit_code == 0, done.output
    assert [row["n"] for row in json.loads(done.stdout)] == [row["n"] for row in rows]


def test_exec_is_taken_when_it_is_named(
    ztctl: Ztctl, cluster: ApiServer, doors: dict[str, Agent]
) -> None:
    done = ztctl(*_list(cluster, "--via", "exec"))
    assert done.exit_code == 0, done.output
    assert (len(cluster.execs), cluster.forwards, cluster.tokens) == (2, [], {})


@pytest.mark.parametrize("denied", ["token", "portforward"])
def test_exec_is_taken_where_port_forward_is_not_allowed(
    ztctl: Ztctl, cluster: ApiServer, doors: dict[str, Agent], denied: str
) -> None:
    cluster.denied.add(denied)
    done = ztctl(*_list(cluster))
    assert done.exit_code == 0, done.output
    assert len(cluster.execs) == 2


@pytest.mark.parametrize(
    ("denied", "right"),
    [
        ("token", "create serviceaccounts/token of ztunnel-admin"),
        ("portforward", "get and create pods/portforward"),
    ],
)
def test_the_right_that_is_missing_is_named(
    ztctl: Ztctl, cluster: ApiServer, doors: dict[str, Agent], denied: str, right: str
) -> None:
    cluster.denied.add(denied)
    done = ztctl(*_list(cluster, "--via", "port-forward"))
    assert done.exit_code == 3
    assert (
        f"answered 403: {'serviceaccounts/token' if denied == 'token' else 'pods/'}" in done.output
    )
    assert f"it needs the right {right} in ztunnel-system" in done.output
    assert cluster.execs == []


def test_when_neither_way_is_allowed_both_are_told(
    ztctl: Ztctl, cluster: ApiServer, doors: dict[str, Agent]
) -> None:
    cluster.denied |= {"portforward", "exec"}
    done = ztctl(*_list(cluster, "--node", "node1"))
    assert done.exit_code == 3
    assert "by port-forward: get and create pods/portforward: " in done.output
    assert "by exec: get and create pods/exec: " in done.output


@pytest.mark.parametrize("note", ["", "80", "80 sha256:abc", "99999 sha256:" + "a" * 64])
def test_pod_that_names_no_usable_port_is_asked_by_exec(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent], note: str
) -> None:
    cluster.notes = dict.fromkeys(agents, note)
    assert ztctl(*_list(cluster)).exit_code == 0
    assert len(cluster.execs) == 2
    done = ztctl(*_list(cluster, "--via", "port-forward"))
    assert "names no port in its annotation ztunnel.dev/admin" in done.output


def test_token_that_the_agent_refuses_is_told(
    ztctl: Ztctl, cluster: ApiServer, doors: dict[str, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_doorway, "PENALTY", 0.0)
    cluster.is_strict = True
    done = ztctl(*_list(cluster, "--node", "node1", "--via", "port-forward"))
    assert done.exit_code == 3
    assert "the agent refuses: a stranger's token" in done.output


def test_impostor_at_the_port_gets_no_token_and_is_told_of(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    """Another process of the node listens where the agent did."""
    with _Impostor() as impostor:
        cluster.notes["node1"] = f"{impostor.port} sha256:{'a' * 64}"
        done = ztctl(*_list(cluster, "--node", "node1"))
    assert done.exit_code == 3
    assert "has not the key that pod agent-node1 names" in done.output
    assert impostor.heard == b""
    assert cluster.execs == []  # it is not passed over in silence
    assert ztctl(*_list(cluster, "--node", "node1", "--via", "exec")).exit_code == 0


def test_port_where_nobody_listens_is_told_as_the_kubelet_says_it(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    with _Impostor() as gone:
        pass
    cluster.notes["node1"] = f"{gone.port} sha256:{'a' * 64}"
    done = ztctl(*_list(cluster, "--node", "node1", "--via", "port-forward"))
    assert done.exit_code == 3
    assert f"port {gone.port} of pod agent-node1: dial: " in done.output


class _Impostor:
    """Speaks good TLS with a key of its own, and keeps what it hears."""

    def __init__(self) -> None:
        self._context, _ = agent_doorway._identity()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard = b""
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            with raw, self._context.wrap_socket(raw, server_side=True) as tls:
                try:
                    self.heard += tls.recv(1 << 12)
                except (ssl.SSLError, ConnectionError):
                    continue
