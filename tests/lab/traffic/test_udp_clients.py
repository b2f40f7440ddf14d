# SPDX-License-Identifier: Apache-2.0
"""Common UDP programs through the mesh, by pod and service address: iperf3, dnsmasq, dig, QUIC."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.helpers.harness import APPS, addresses, proxy_log, python_pod
from tests.lab.helpers.scrape import scrape
from tests.lab.test_ztctl import ztctl
from tests.lab.traffic.test_udp_policy import udp_counts
from tests.lab.traffic.udp_lab import ECHO, WHOAMI, serving, udp_client, udp_servers
from tests.support.waiting import wait_until
from ztunnel.lab import Lab, admin_get
from ztunnel.proxy.conntrack.udp_flow_table import MAX_FLOWS

FAMILIES = pytest.mark.parametrize("family", [4, 6])
NODES = pytest.mark.parametrize("node", ["node1", "node2"])
DNS, QUIC, IPERF = 5300, 4433, 5201
NAME, ADDRESS = "thing.mesh.test", "192.0.2.7"
TEXT = "x" * 200
SERVERS = {
    "iperf": ["iperf3", "-s"],
    "dns": [
        *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root"),
        *("--no-resolv", "--no-hosts", f"--port={DNS}", f"--address=/{NAME}/{ADDRESS}"),
        *("--edns-packet-max=4096", "--bind-interfaces"),  # see the limits of decision 0015
        "--txt-record=big.mesh.test" + f",{TEXT}" * 10,
    ],
    "quic": [sys.executable, str(APPS / "quic_server.py"), str(QUIC)],
}


def _service(name: str, app: str, *ports: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"udp": app},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [
                {"name": f"p{port}", "port": port + 1000, "targetPort": port, "protocol": "UDP"}
                for port in ports
            ],
        },
    }


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Iterator[Lab]:
    """Each server on both nodes; services for the QUIC and echo servers."""
    pods = []
    for node in ("node1", "node2"):
        for name, command in SERVERS.items():
            pod = python_pod(f"{name}-{node}", node, labels={"udp": name})
            pod["spec"]["containers"][0] |= {"command": command, "ports": []}
            pods.append(pod)
    services = [_service("quic", "quic", QUIC), _service("echo", "echo", ECHO, WHOAMI)]
    with udp_servers(lab):
        for name in ("udp-far", "udp-near"):
            lab.label("pod", name, {"udp": "echo"})
        assert lab.apply(*pods, *services) == []
        for node in ("node1", "node2"):
            serving(lab, f"quic-{node}")
        try:
            yield lab
        finally:
            for pod in pods:
                lab.delete("Pod", pod["metadata"]["name"], "default")
            for service in services:
                lab.delete("Service", service["metadata"]["name"], "default")


def _said(lab: Lab, *argv: str, timeout: float = 60) -> str:
    done = lab.exec("client", *argv, timeout=timeout)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    return done.stdout


@NODES
@FAMILIES
def test_iperf3_measures_udp_across_the_mesh(servers: Lab, node: str, family: int) -> None:
    before = udp_counts(servers, "node1")["udp_redirected"]
    target = addresses(servers, f"iperf-{node}")[family]
    argv = ["iperf3", "-c", target, "-u", "-b", "10M", "-l", "1200", "-t", "2", "-J"]
    end = json.loads(_said(servers, *argv))["end"]["sum"]
    assert end["packets"] > 1000
    assert end["lost_percent"] < 50
    carried = udp_counts(servers, "node1")["udp_redirected"] - before
    assert bool(carried) is (node == "node2")  # native on the same node


@NODES
@FAMILIES
def test_dns_server_is_reached_across_the_mesh(servers: Lab, node: str, family: int) -> None:
    target = addresses(servers, f"dns-{node}")[family]
    dig = ["dig", "+short", "+tries=3", "+time=5", f"@{target}", "-p", str(DNS)]
    assert _said(servers, *dig, NAME) == f"{ADDRESS}\n"
    big = _said(servers, *dig, "+bufsize=4096", "+ignore", "big.mesh.test", "TXT")
    assert big.split() == [f'"{TEXT}"'] * 10


@NODES
@FAMILIES
def test_quic_works_across_the_mesh(servers: Lab, node: str, family: int) -> None:
    target = addresses(servers, f"quic-{node}")[family]
    argv = [sys.executable, str(APPS / "quic_client.py"), target, str(QUIC), "300000"]
    assert json.loads(_said(servers, *argv)) == {"same": True}


def _vip(lab: Lab, service: str, family: int) -> str:
    ips = lab.get("service", service)["spec"]["clusterIPs"]
    return next(str(ip) for ip in ips if (":" in ip) == (family == 6))


@FAMILIES
def test_service_is_reached_by_connected_and_unconnected_sockets(servers: Lab, family: int) -> None:
    """Replies have the service address, the server sees the client, a flow keeps its endpoint."""
    before = udp_counts(servers, "node1")["udp_redirected"]
    vip, mine = _vip(servers, "echo", family), addresses(servers, "client")[family]
    said = udp_client(servers, "echo", vip, ECHO + 1000, "hello")
    assert said == {"said": "hello", "source": [vip, ECHO + 1000]}
    said = udp_client(servers, "names", vip, WHOAMI + 1000)
    assert said["getpeername"] == said["source"] == [vip, WHOAMI + 1000]
    assert said["server"] == [mine, said["getsockname"][1]]
    wanted = [1200, 1400, 8192, 61_440]
    got = udp_client(servers, "sizes", vip, ECHO + 1000, ",".join(map(str, wanted)))
    assert got["same"] == wanted
    assert udp_counts(servers, "node1")["udp_redirected"] > before


def test_udp_flows_spread_over_the_endpoints_of_a_service(servers: Lab) -> None:
    """Includes the endpoint on the node of the client: the choice is random."""
    vip = _vip(servers, "echo", 4)
    ends = {f"{addresses(servers, pod)[4]}:{ECHO}" for pod in ("udp-far", "udp-near")}

    def chosen() -> set[str]:
        udp_client(servers, "echo", vip, ECHO + 1000, "hello")
        _, rows = _connections(servers)
        return {row["destination"]["address"] for row in rows if row.get("protocol") == "udp"}

    wait_until(lambda: ends <= chosen(), "both endpoints to be chosen", timeout_s=30)


def _connections(lab: Lab) -> tuple[int, list[dict[str, Any]]]:
    status, answer = admin_get(lab.names, "node1", "/v1/connections")
    return status, list((answer or {}).get("connections", []))


def test_quic_reaches_a_service(servers: Lab) -> None:
    argv = [sys.executable, str(APPS / "quic_client.py"), _vip(servers, "quic", 4)]
    said = json.loads(_said(servers, *argv, str(QUIC + 1000), "100000"))
    assert said == {"same": True}


def test_udp_flows_are_counted_in_istio_metrics(servers: Lab) -> None:
    target = addresses(servers, "udp-far2")[4]
    labels = {
        "request_protocol": "udp",
        "source_workload": "client",
        "destination_workload": "udp-far2",
        "connection_security_policy": "mutual_tls",
    }
    names = ("istio_tcp_connections_opened_total", "istio_tcp_received_bytes_total")

    def counted() -> list[float]:
        pages = [scrape(servers, node) for node in ("node1", "node2")]
        return [page.total(name, **labels) for page in pages for name in names]

    before = counted()
    udp_client(servers, "echo", target, ECHO, "x" * 1000)

    def grown() -> list[float]:
        return [now - then for now, then in zip(counted(), before, strict=True)]

    wait_until(lambda: grown() == [1, 1000, 1, 1000], "both nodes to count the flow")


def test_flows_of_a_pod_are_limited(servers: Lab) -> None:
    """Beyond the limit, active flows stay; new datagrams are dropped and counted, or replace a flow
    that has been idle for some seconds."""

    def drops() -> int:
        _, status = admin_get(servers.names, "node1", "/v1/status")
        return int((status or {})["data_path"]["udp"]["dropped"]["flow_limit"])

    before = drops()
    udp_client(servers, "sweep", addresses(servers, "udp-far2")[4], 20_000, MAX_FLOWS + 500)
    wait_until(
        lambda: drops() > before or "evicted for a newer flow" in proxy_log(servers, "node1"),
        "the limit to be reached",
        timeout_s=60,
    )
    _, rows = _connections(servers)
    assert sum(row.get("protocol") == "udp" for row in rows) <= MAX_FLOWS
    assert "dropped" in ztctl(servers, "--node", "node1", "status").stdout
    wait_until(
        lambda: (
            scrape(servers, "node1").total("ztunnel_udp_drops_total", reason="flow_limit")
            == drops()
        ),
        "Prometheus to udp_client the same",
    )
    assert list(scrape(servers, "node1").matching("ztunnel_udp_drops_total", reason="buffer_full"))
    servers.restart("node1", "proxy")  # close them all
    wait_until(
        lambda: (
            udp_client(servers, "refused", addresses(servers, "udp-far2")[4], ECHO)["end"]
            == "answered"
        ),
        "UDP to be back",
    )


def test_idle_flow_ends_and_logs_its_bytes(servers: Lab) -> None:
    """A flow without an answer: no server listens on that port."""
    target = addresses(servers, "udp-far2")[4]
    assert udp_client(servers, "refused", target, 7999)["end"] == "silence"

    def logged() -> bool:
        return any(
            f"{target}:7999" in line and "udp" in line and "outbound" in line
            for line in proxy_log(servers, "node1").splitlines()
        )

    assert not logged()
    wait_until(logged, "the flow to end for lack of use", timeout_s=45)
