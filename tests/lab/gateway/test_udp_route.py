# SPDX-License-Identifier: Apache-2.0
"""A UDPRoute: datagrams from outside, and from pods, through the gateway to servers of the mesh."""

from __future__ import annotations

import json
import sys

import pytest

from tests.lab.gateway import edge
from tests.lab.gateway.outside import Edge
from tests.lab.gateway.test_udp import CLIENT, WHOAMI_PORT, servers
from tests.lab.waypoint import shop
from tests.support.waiting import wait_until

PORT = 5300
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def udp(edge_shop: Edge) -> Edge:
    """The servers of both nodes behind a listener of the gateway."""
    service = shop.service("udp")
    port = {"name": "whoami", "port": PORT, "targetPort": WHOAMI_PORT, "protocol": "UDP"}
    service["spec"] = {"selector": {"app": "udp"}, "ports": [port]}
    pods = servers()
    for pod in pods:
        pod["metadata"]["labels"] = {"app": "udp"}
    parent = {"name": edge.GATEWAY, "sectionName": f"udp-{PORT}"}
    spec = {
        "parentRefs": [parent],
        "rules": [{"backendRefs": [{"name": "udp", "port": PORT}]}],
    }
    route = shop.obj(edge.API, "UDPRoute", "udp", spec=spec)
    listeners = edge.gateway(edge.listener(80), edge.listener(PORT, "UDP"))
    assert edge_shop.lab.apply(service, *pods, route, *listeners) == []
    return edge_shop


def is_answered(udp: Edge, output: str) -> bool:
    """Whether both datagrams reached a server from the gateway, which may prefer a family."""
    sources = [json.loads(line)[0] for line in output.splitlines()]
    return len(sources) == 2 and set(sources) <= {udp.pod_ip(family=each) for each in (4, 6)}


@FAMILIES
def test_datagrams_from_outside_reach_servers_through_the_gateway(udp: Edge, family: int) -> None:
    argv = sys.executable, "-c", CLIENT, udp.balancer(family), str(PORT)
    wait_until(
        lambda: is_answered(udp, udp.lab.external_exec(*argv).stdout),
        "the servers answer",
        timeout_s=30,
    )


@FAMILIES
@pytest.mark.parametrize("to_pod", [False, True])
@pytest.mark.parametrize("caller", ["thief-near", "thief-far"])
def test_datagrams_of_pods_reach_servers_through_the_gateway(
    udp: Edge, caller: str, family: int, to_pod: bool
) -> None:
    ip = udp.pod_ip(family=family) if to_pod else udp.vip(family)
    argv = sys.executable, "-c", CLIENT, ip, str(PORT)
    wait_until(
        lambda: is_answered(udp, udp.lab.exec(caller, *argv, namespace=shop.SHOP).stdout),
        "the servers answer",
        timeout_s=30,
    )
