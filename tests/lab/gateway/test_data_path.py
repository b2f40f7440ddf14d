# SPDX-License-Identifier: Apache-2.0
"""The data path of an ingress gateway: its listener ports are public, all else is captured.

The namespace is STRICT, and node1, where the gateway runs, has one of the app's two pods.
"""

from __future__ import annotations

import re

import pytest

from tests.lab.gateway import edge
from tests.lab.gateway.outside import CLIENT, Edge
from tests.lab.waypoint import shop
from tests.support.waiting import wait_until

FAMILIES = pytest.mark.parametrize("family", [4, 6])
NEAR_AND_FAR = pytest.mark.parametrize("caller", ["thief-near", "thief-far"])


@FAMILIES
def test_client_outside_reaches_the_app_through_strict_with_its_own_address(
    edge_shop: Edge, family: int
) -> None:
    """The servers of both nodes authorize the identity of the gateway."""
    versions = set()
    for _ in range(20):
        response = edge_shop.outside("/from-outside", family=family)
        assert response.status == 200, response.text
        assert response.body["headers"]["x-forwarded-for"] == CLIENT[family]
        versions.add(response.version)
    assert versions == {"v1", "v2"}
    wait_until(
        lambda: re.search(rf"/from-outside.*{re.escape(CLIENT[family])}", edge_shop.access_log()),
        "the access log to show the client",
    )


@FAMILIES
@NEAR_AND_FAR
@pytest.mark.parametrize("to_pod", [False, True])
def test_pods_of_the_mesh_reach_the_gateway_with_their_own_address(
    edge_shop: Edge, caller: str, family: int, to_pod: bool
) -> None:
    """Several times: between pods of one node, later connections bypass the proxy."""
    ip = edge_shop.pod_ip(family=family) if to_pod else edge_shop.vip(family)
    for _ in range(3):
        response = edge_shop.inside(caller, ip)
        assert response.status == 200, response.text
        forwarded = response.body["headers"]["x-forwarded-for"]
        assert forwarded == edge_shop.pod_ip(caller, family)


@FAMILIES
def test_policy_of_the_gateway_sees_the_client_and_the_request(
    edge_shop: Edge, family: int
) -> None:
    client = {"source": {"remoteIpBlocks": [CLIENT[family]]}}
    private = {"operation": {"paths": ["/private*"]}}
    denied = edge.policy("edge", "DENY", {"from": [client], "to": [private]}, **edge.of_gateway())
    assert edge_shop.lab.apply(denied) == []
    try:
        wait_until(
            lambda: edge_shop.outside("/private", family=family).status == 403, "the policy applies"
        )
        assert edge_shop.outside("/", family=family).status == 200
        # neither the node of the gateway, nor the same-node bypass, denies without the path
        for caller in ("thief-near", "thief-far"):
            ip = edge_shop.vip(family)
            assert edge_shop.inside(caller, ip, "/private").status == 200
    finally:
        assert edge_shop.lab.delete("AuthorizationPolicy", "edge", shop.SHOP) == []


@FAMILIES
@NEAR_AND_FAR
def test_a_policy_with_request_attributes_allows_requests_from_the_mesh(
    edge_shop: Edge, caller: str, family: int
) -> None:
    """A node alone would deny: an ALLOW rule with a path allows nothing at L4."""
    rule = {"to": [{"operation": {"paths": ["/open*"]}}]}
    assert edge_shop.lab.apply(edge.policy("edge", "ALLOW", rule, **edge.of_gateway())) == []
    try:
        ip = edge_shop.vip(family)
        wait_until(lambda: edge_shop.inside(caller, ip, "/x").status == 403, "the policy applies")
        assert edge_shop.inside(caller, ip, "/open").status == 200
        # all other ports: the node enforces the policy at L4
        wait_until(
            lambda: (
                edge_shop.inside(caller, edge_shop.pod_ip(family=family), port=15021).status == 0
            )
        )
    finally:
        assert edge_shop.lab.delete("AuthorizationPolicy", "edge", shop.SHOP) == []


@FAMILIES
def test_other_ports_of_the_gateway_pod_stay_captured(edge_shop: Edge, family: int) -> None:
    """STRICT: plaintext from a pod outside the mesh is denied at the port of the metrics."""
    ip = edge_shop.pod_ip(family=family)
    assert edge_shop.inside("buyer-far", ip, "/metrics", port=15020).status == 200
    plain = {"metadata": {"name": "plain", "namespace": "default"}}
    pod = shop.pod("plain", "node2", "default") | plain
    assert edge_shop.lab.apply(pod) == []
    try:

        def status(port: int) -> str:
            url = f"http://[{ip}]:{port}/" if family == 6 else f"http://{ip}:{port}/"
            argv = "curl", "-sg", "--max-time", "3", "-o", "/dev/null", "-w", "%{http_code}", url
            return edge_shop.lab.exec("plain", *argv).stdout

        assert status(80) == "200"
        assert status(15020) == "000"
    finally:
        assert edge_shop.lab.delete("Pod", "plain") == []


@FAMILIES
def test_ports_follow_the_listeners_and_survive_a_restart_of_the_agent(
    edge_shop: Edge, family: int
) -> None:
    def serves(port: int) -> bool:
        return edge_shop.outside(family=family, port=port).status == 200

    assert edge_shop.lab.apply(*edge.gateway(edge.listener(80), edge.listener(8081))) == []
    wait_until(lambda: serves(8081), "the new port is served", timeout_s=10)
    edge_shop.lab.kill("node1", "agent")
    assert serves(8081)
    edge_shop.lab.start("node1", "agent")
    wait_until(lambda: serves(80), "the agent runs")
    assert edge_shop.lab.apply(*edge.gateway(edge.listener(80))) == []
    wait_until(lambda: not serves(8081), "the old port is closed", timeout_s=10)
    assert serves(80)
