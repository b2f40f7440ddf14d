# SPDX-License-Identifier: Apache-2.0
"""Services beside the mesh: kube-proxy implements their addresses, and enrolled pods use them."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.lab.helpers.scrape import Page
from tests.node.border_workloads import INSIDE, OUTSIDE, SERVERS, cluster_ip, node_port
from tests.support.apiserver.control_plane import wait_until
from tests.support.nodes.cluster_fixture import CONTROL, PORT, SERVICE, Nodes
from tests.support.nodes.cluster_setup import TIMEOUT_S
from tests.support.nodes.objects import AMBIENT, GREETING, metadata
from tests.support.nodes.pods import MARK, ask, connections, is_captured, pod, requests, run_in

CLIENT_ID, FAR_ID = (f"spiffe://cluster.local/ns/{INSIDE}/sa/{name}" for name in ("client", "far"))
# connects to the API server through its service, like client libraries
_ASK_API = """
import os, ssl, urllib.request
place = "/var/run/secrets/kubernetes.io/serviceaccount/"
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
request = urllib.request.Request(f"https://{host}:{port}/version")
request.add_header("Authorization", "Bearer " + open(place + "token").read())
tls = ssl.create_default_context(cafile=place + "ca.crt")
print(host, urllib.request.urlopen(request, context=tls, timeout=5).status)
"""

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("way", ["tcp", "udp"])
@pytest.mark.parametrize("target", SERVERS)
@pytest.mark.parametrize("there", [INSIDE, OUTSIDE])
@pytest.mark.parametrize("here", [INSIDE, OUTSIDE])
def test_services_are_reached_inside_outside_and_across_the_mesh_border(
    border: Nodes, here: str, there: str, target: str, way: str
) -> None:
    host = cluster_ip(border, there, target)
    assert ask(border, here, "client", host, udp=way == "udp") == GREETING


def test_enrolled_pods_reach_a_service_by_mutual_tls(border: Nodes) -> None:
    assert ask(border, INSIDE, "client", cluster_ip(border, INSIDE, "far")) == GREETING
    for line in wait_until(partial(_to_service, border, "far"), "the connection in the log"):
        assert line["dst.identity"] == FAR_ID
        assert line["dst.hbone_addr"]


def _to_service(cluster: Nodes, name: str) -> list[dict[str, Any]]:
    service = f"{name}.{INSIDE}.svc.cluster.local"
    lines = connections(cluster, CLIENT_ID)
    return [line for line in lines if line.get("dst.service") == service]


@pytest.mark.parametrize("way", ["tcp", "udp"])
def test_metrics_distinguish_encrypted_connections(border: Nodes, way: str) -> None:
    for there in (INSIDE, OUTSIDE):
        host = cluster_ip(border, there, "far")
        assert ask(border, INSIDE, "client", host, udp=way == "udp") == GREETING
    wait_until(partial(_opened, border, way, INSIDE, "mutual_tls"), "an encrypted one is counted")
    assert not _opened(border, way, INSIDE, "unknown")
    assert not _opened(border, way, OUTSIDE, "mutual_tls")


def _opened(cluster: Nodes, way: str, there: str, security: str) -> float:
    """Connections from the client in the mesh to a server on the other node, as counted by its
    node."""
    url = f"http://{cluster.machines[0].address}:15020/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        page = Page(answer.read().decode())
    return page.total(
        "istio_tcp_connections_opened_total",
        reporter="source",
        request_protocol=way,
        source_workload_namespace=INSIDE,
        destination_workload="far",
        destination_workload_namespace=there,
        connection_security_policy=security,
    )


@pytest.mark.parametrize("space", [INSIDE, OUTSIDE])
def test_api_server_is_reached_through_its_service(border: Nodes, space: str) -> None:
    words = ("get", "endpointslices", "kubernetes", "-o", "json")
    known = json.loads(border.server.kubectl(*words))
    assert [each["addresses"] for each in known["endpoints"]] == [[CONTROL]]
    assert [each["port"] for each in known["ports"]] == [PORT]
    assert run_in(border, space, "client", "python3", "-c", _ASK_API) == f"{SERVICE} 200"


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("target", SERVERS)
def test_node_port_reaches_the_mesh_from_outside(border: Nodes, target: str, node: int) -> None:
    port = node_port(border, INSIDE, target)
    assert _from_outside(border.machines[node].address, port) == GREETING


def _from_outside(node: str, port: int) -> str:
    """The answer to a client outside the cluster, which is the test in its namespace."""
    try:
        with urllib.request.urlopen(f"http://{node}:{port}/", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError as error:
        return repr(error)


def test_services_join_and_leave_the_mesh_without_a_failed_request(border: Nodes) -> None:
    host = cluster_ip(border, INSIDE, "far")
    (mode, ambient), none = *AMBIENT.items(), "none"
    with (
        requests(border, INSIDE, "client", host) as inside,
        requests(border, OUTSIDE, "client", host) as outside,
    ):
        for wanted in (none, ambient, none, ambient):
            counts = [len(answers) + 20 for answers in (inside, outside)]
            border.server.kubectl("label", "--overwrite", "ns", INSIDE, f"{mode}={wanted}")
            for name in ("client", "far"):
                wait_until(partial(_is_in, border, name, wanted == ambient), f"{name} follows")
            wait_until(lambda: len(inside) > counts[0] and len(outside) > counts[1])  # noqa: B023
    for answers in (inside, outside):
        failed = [(each, said) for each, said in enumerate(answers) if said != GREETING]
        assert failed == [], f"of {len(answers)}: {failed}\n{border.diagnostics()}"


def _is_in(cluster: Nodes, name: str, wanted: bool) -> bool:
    if wanted:
        return is_captured(cluster, INSIDE, name)
    return not pod(cluster, INSIDE, name)["metadata"].get("annotations", {}).get(MARK)


def test_kube_proxy_changes_only_its_own_node(border: Nodes) -> None:
    for machine in border.machines:
        assert "table ip kube-proxy" in machine.run("nft", "list", "tables")
        log = (machine.directory / "kube-proxy.log").read_text()
        assert "Using nftables Proxier" in log
        assert "Set sysctl" not in log
    elsewhere = ["nsenter", f"--net=/proc/{os.getppid()}/ns/net", "nft", "list", "tables"]
    done = subprocess.run(elsewhere, capture_output=True, text=True, check=True, timeout=20)
    assert "kube-proxy" not in done.stdout


@pytest.fixture(scope="module")
def strict(border: Nodes) -> Iterator[Nodes]:
    """Plaintext is rejected everywhere."""
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        **metadata("strict", INSIDE),
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    host = cluster_ip(border, INSIDE, "far")
    border.server.apply(policy)
    wait_until(
        lambda: "reset" in ask(border, OUTSIDE, "client", host), "it holds", timeout_s=TIMEOUT_S
    )
    yield border
    border.server.kubectl("delete", "peerauthentication", "-n", INSIDE, "strict")
    wait_until(
        lambda: ask(border, OUTSIDE, "client", host) == GREETING, "it is gone", timeout_s=TIMEOUT_S
    )


def test_strict_accepts_only_mutual_tls_through_a_service(strict: Nodes) -> None:
    host = cluster_ip(strict, INSIDE, "far")
    assert "reset" in ask(strict, OUTSIDE, "client", host)
    assert ask(strict, INSIDE, "client", host) == GREETING


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("target", SERVERS)
def test_strict_rejects_plaintext_through_a_node_port(
    strict: Nodes, target: str, node: int
) -> None:
    """Also on the node of the pod, where kube-proxy uses the source address that probes have."""
    port = node_port(strict, INSIDE, target)
    assert "reset" in _from_outside(strict.machines[node].address, port)
    assert is_captured(strict, INSIDE, target)  # its probes succeed
