# SPDX-License-Identifier: Apache-2.0
"""Datagrams through the Envoy of an ingress gateway: from clients, and to servers, on both nodes.

The namespace is STRICT, and the servers admit the identity of the gateway only. The Envoy has a
static configuration, so that this is a test of the data path.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import edge
from tests.lab.helpers.harness import APPS
from tests.lab.waypoint import shop
from tests.lab.waypoint.shop import Object
from tests.support.waiting import wait_until
from ztunnel.lab import Lab

PORTS = {"near": 5301, "far": 5302}  # of the gateway, by the place of the server
WHOAMI_PORT = 7101  # of the server: returns the source address
CLIENTS = ["plain", "thief-near", "thief-far"]  # plain is not in the mesh
CLIENT = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(3)
for _ in range(2):
    sock.sendto(b"x", (host, port))
    print(sock.recv(200).decode())
"""


def servers() -> list[Object]:
    found = [shop.pod(f"udp-{place}", node, "my-app") for place, node in shop.NODES.items()]
    for each in found:
        each["metadata"]["labels"] = {"app": "my-app"}
        each["spec"]["containers"][0]["command"] = [sys.executable, str(APPS / "udp_server.py")]
    return found


def gateway_pod(config: Path) -> list[Object]:
    pod = shop.pod("edge", "node1", edge.SERVICE)
    pod["metadata"]["labels"] = {"gateway.networking.k8s.io/gateway-name": edge.GATEWAY}
    envoy = Path(sys.executable).with_name("envoy")
    pod["spec"]["containers"][0]["command"] = [
        *(str(envoy), "-c", str(config), "--use-dynamic-base-id", "--disable-hot-restart")
    ]
    listeners = [edge.listener(port, "UDP") for port in PORTS.values()]
    spec = {"gatewayClassName": edge.CLASS, "listeners": listeners}
    return [shop.obj(edge.API, "Gateway", edge.GATEWAY, spec=spec), pod]


def envoy_config(ips: dict[str, dict[int, str]]) -> Object:
    listeners, clusters = [], []
    for place, port in PORTS.items():
        for family, ip in ips[place].items():
            name = f"{place}{family}"
            listeners.append(udp_listener(name, "0.0.0.0" if family == 4 else "::", port))
            clusters.append(cluster(name, ip))
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def udp_listener(name: str, ip: str, port: int) -> Object:
    kind = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3."
    route = {"@type": f"{kind}Route", "cluster": name}
    proxy = {
        "@type": f"{kind}UdpProxyConfig",
        "stat_prefix": name,
        "matcher": {"on_no_match": {"action": {"name": "route", "typed_config": route}}},
    }
    address = {"protocol": "UDP", "address": ip, "port_value": port}
    return {
        "name": name,
        "address": {"socket_address": address},
        "listener_filters": [
            {"name": "envoy.filters.udp_listener.udp_proxy", "typed_config": proxy}
        ],
    }


def cluster(name: str, ip: str) -> Object:
    address = {"protocol": "UDP", "address": ip, "port_value": WHOAMI_PORT}
    endpoint = {"endpoint": {"address": {"socket_address": address}}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {"name": name, "type": "STATIC", "load_assignment": assignment}


def ips_of(lab: Lab, pod: str) -> dict[int, str]:
    found = (entry["ip"] for entry in lab.pod(pod, shop.SHOP)["status"]["podIPs"])
    return {6 if ":" in ip else 4: ip for ip in found}


def replies(lab: Lab, caller: str, ip: str, place: str) -> list[str]:
    """The source addresses that the server saw; fewer than two if a datagram was lost."""
    namespace = "default" if caller == "plain" else shop.SHOP
    argv = sys.executable, "-c", CLIENT, ip, str(PORTS[place])
    output = lab.exec(caller, *argv, namespace=namespace).stdout
    return [json.loads(line)[0] for line in output.splitlines()]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(f"u{os.getpid() % 100000}")
    plain = shop.pod("plain", "node2", "default")
    plain["metadata"]["namespace"] = "default"
    try:
        assert made.up([]) == []
        assert made.apply(*shop.shop(), *servers(), plain) == []
        ips = {place: ips_of(made, f"udp-{place}") for place in PORTS}
        config = tmp_path_factory.mktemp("edge") / "envoy.json"
        config.write_text(json.dumps(envoy_config(ips)))
        account = shop.obj("v1", "ServiceAccount", edge.SERVICE)
        policies = edge.strict(), edge.callers_of_my_app(edge.IDENTITY)
        assert made.apply(account, *gateway_pod(config), *policies) == []
        yield made
    finally:
        made.down()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", PORTS)
@pytest.mark.parametrize("caller", CLIENTS)
def test_datagrams_reach_servers_under_the_gateways_identity(
    lab: Lab, caller: str, place: str, family: int
) -> None:
    gateway = ips_of(lab, "edge")[family]
    wait_until(lambda: replies(lab, caller, gateway, place), "the gateway answers", timeout_s=30)
    assert replies(lab, caller, gateway, place) == [gateway, gateway]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", PORTS)
def test_servers_admit_no_other_identity(lab: Lab, place: str, family: int) -> None:
    server = ips_of(lab, f"udp-{place}")[family]
    for caller in CLIENTS:
        namespace = "default" if caller == "plain" else shop.SHOP
        argv = sys.executable, "-c", CLIENT, server, str(WHOAMI_PORT)
        assert lab.exec(caller, *argv, namespace=namespace).stdout == ""
