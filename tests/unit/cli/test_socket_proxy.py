# SPDX-License-Identifier: Apache-2.0
"""`ztctl` with a cluster: agents' admin sockets through exec and port-forward."""

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
from ztunnel.agent.api import remote_admin_server


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


def test_agents_of_all_nodes_are_queried_by_exec(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "certificate", "list", "-o", "json")
    assert done.exit_code == 0, done.output
    assert [(row["node"], row["identity"]) for row in json.loads(done.stdout)] == [
        ("node1", "of node1"),
        ("node2", "of node2"),
    ]
    assert cluster.execs == [["ztctl", "stdio-proxy"]] * 2


def test_node_option_selects_one_agent(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    where = ("--kubeconfig", str(cluster.kubeconfig), "--context", "c", "--node", "node2")
    done = ztctl("certificate", "list", "-o", "json", *where)
    assert [row["node"] for row in json.loads(done.stdout)] == ["node2"]
    assert len(cluster.execs) == 1


def test_response_larger_than_the_buffers_is_complete(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    rows = [{"identity": f"number {number}", "n": "x" * 500} for number in range(4000)]
    agents["node1"].answers["/v1/certificates"] = {"certificates": rows}
    where = ("--kubeconfig", str(cluster.kubeconfig), "--node", "node1")
    done = ztctl(*where, "certificate", "list", "-o", "json")
    assert done.exit_code == 0, done.output
    assert [row["n"] for row in json.loads(done.stdout)] == [row["n"] for row in rows]


def test_unknown_node_is_an_error_with_the_known_nodes(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "--node", "node9", "status")
    assert done.exit_code == 1
    assert "node1, node2" in done.output


def test_cluster_without_agents_is_an_error_with_hint(ztctl: Ztctl, cluster: ApiServer) -> None:
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "status")
    assert done.exit_code == 3
    assert "ztctl install" in done.output


def test_error_of_one_node_is_reported_beside_the_rows_of_others(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    cluster.forbidden.add("node1")
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "certificate", "list")
    assert done.exit_code == 3
    assert "of node2" in done.output
    assert "node1: " in done.output
    assert "403" in done.output


def test_pod_without_listening_agent_is_an_error(
    ztctl: Ztctl, cluster: ApiServer, tmp_path: Path
) -> None:
    cluster.agents["node1"] = tmp_path / "missing"
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "certificate", "list")
    assert done.exit_code == 3
    assert "cannot connect to the agent at" in done.output


def test_redirect_of_a_cluster_node_is_an_error_with_hint(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    done = ztctl("--kubeconfig", str(cluster.kubeconfig), "--node", "node1", "redirect", "list")
    assert done.exit_code != 0
    assert (
        "kubectl -n ztunnel-system exec agent-node1 -c agent -- ztctl redirect list" in done.output
    )


# By port-forward


@pytest.fixture
def endpoints(cluster: ApiServer, agents: dict[str, Agent]) -> dict[str, Agent]:
    """The agents, each with a port and an annotation."""
    for node in agents:
        cluster.open_endpoint(node)
    return agents


def _list(cluster: ApiServer, *options: str) -> tuple[str, ...]:
    return ("--kubeconfig", str(cluster.kubeconfig), *options, "certificate", "list", "-o", "json")


def test_annotated_agents_are_queried_by_port_forward(
    ztctl: Ztctl, cluster: ApiServer, endpoints: dict[str, Agent]
) -> None:
    done = ztctl(*_list(cluster))
    assert done.exit_code == 0, done.output
    assert [row["identity"] for row in json.loads(done.stdout)] == ["of node1", "of node2"]
    assert cluster.execs == []
    assert len(cluster.forwards) == len(set(cluster.tokens.values())) == 2  # a token each


def test_large_response_by_port_forward_is_complete(
    ztctl: Ztctl, cluster: ApiServer, endpoints: dict[str, Agent]
) -> None:
    rows = [{"identity": f"number {number}", "n": "x" * 500} for number in range(4000)]
    endpoints["node1"].answers["/v1/certificates"] = {"certificates": rows}
    done = ztctl(*_list(cluster, "--node", "node1", "--transport", "port-forward"))
    assert done.exit_code == 0, done.output
    assert [row["n"] for row in json.loads(done.stdout)] == [row["n"] for row in rows]


def test_transport_option_selects_exec(
    ztctl: Ztctl, cluster: ApiServer, endpoints: dict[str, Agent]
) -> None:
    done = ztctl(*_list(cluster, "--transport", "exec"))
    assert done.exit_code == 0, done.output
    assert (len(cluster.execs), cluster.forwards, cluster.tokens) == (2, [], {})


@pytest.mark.parametrize("denied", ["token", "portforward"])
def test_exec_is_used_if_port_forward_is_forbidden(
    ztctl: Ztctl, cluster: ApiServer, endpoints: dict[str, Agent], denied: str
) -> None:
    cluster.denied.add(denied)
    done = ztctl(*_list(cluster))
    assert done.exit_code == 0, done.output
    assert len(cluster.execs) == 2


@pytest.mark.parametrize(
    ("denied", "permission"),
    [
        ("token", "create serviceaccounts/token of ztunnel-admin"),
        ("portforward", "get and create pods/portforward"),
    ],
)
def test_missing_permission_is_in_the_hint(
    ztctl: Ztctl, cluster: ApiServer, endpoints: dict[str, Agent], denied: str, permission: str
) -> None:
    cluster.denied.add(denied)
    done = ztctl(*_list(cluster, "--transport", "port-forward"))
    assert done.exit_code == 3
    assert (
        f"responded 403: {'serviceaccounts/token' if denied == 'token' else 'pods/'}" in done.output
    )
    assert f"hint: grant the permission to {permission} in namespace ztunnel-system" in done.output
    assert cluster.execs == []


def test_errors_of_both_transports_are_reported(
    ztctl: Ztctl, cluster: ApiServer, endpoints: dict[str, Agent]
) -> None:
    cluster.denied |= {"portforward", "exec"}
    done = ztctl(*_list(cluster, "--node", "node1"))
    assert done.exit_code == 3
    assert "by port-forward: get and create pods/portforward: " in done.output
    assert "by exec: get and create pods/exec: " in done.output


@pytest.mark.parametrize("annotation", ["", "80", "80 sha256:abc", "99999 sha256:" + "a" * 64])
def test_exec_is_used_without_a_valid_annotation(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent], annotation: str
) -> None:
    cluster.annotations = dict.fromkeys(agents, annotation)
    assert ztctl(*_list(cluster)).exit_code == 0
    assert len(cluster.execs) == 2
    done = ztctl(*_list(cluster, "--transport", "port-forward"))
    assert "has no valid annotation ztunnel.dev/admin" in done.output


def test_rejected_token_is_reported(
    ztctl: Ztctl, cluster: ApiServer, endpoints: dict[str, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_admin_server, "REJECTION_DELAY_S", 0.0)
    cluster.is_strict = True
    done = ztctl(*_list(cluster, "--node", "node1", "--transport", "port-forward"))
    assert done.exit_code == 3
    assert "the agent rejects the token: unknown token" in done.output


def test_impostor_at_the_port_gets_no_token_and_is_reported(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    """Another process of the node is bound to the agent's port."""
    with _Impostor() as impostor:
        cluster.annotations["node1"] = f"{impostor.port} sha256:{'a' * 64}"
        done = ztctl(*_list(cluster, "--node", "node1"))
    assert done.exit_code == 3
    assert "expected the key in the annotation of pod agent-node1" in done.output
    assert impostor.received == b""
    assert cluster.execs == []  # no other transport is tried silently
    assert ztctl(*_list(cluster, "--node", "node1", "--transport", "exec")).exit_code == 0


def test_closed_port_is_reported_with_the_kubelet_error(
    ztctl: Ztctl, cluster: ApiServer, agents: dict[str, Agent]
) -> None:
    with _Impostor() as gone:
        pass
    cluster.annotations["node1"] = f"{gone.port} sha256:{'a' * 64}"
    done = ztctl(*_list(cluster, "--node", "node1", "--transport", "port-forward"))
    assert done.exit_code == 3
    assert f"port {gone.port} of pod agent-node1: dial: " in done.output


class _Impostor:
    """A TLS server with a key of its own; `received` has the bytes it was sent."""

    def __init__(self) -> None:
        self._context, _ = remote_admin_server._identity()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received = b""
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
                    self.received += tls.recv(1 << 12)
                except (ssl.SSLError, ConnectionError):
                    continue
