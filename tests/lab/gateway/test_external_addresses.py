# SPDX-License-Identifier: Apache-2.0
"""Pods of the mesh that dial load balancers, external IPs and node ports stay in the mesh.

The namespace is STRICT and the app admits the identity of the buyer only: plaintext is denied.
"""

from __future__ import annotations

import pytest

from tests.lab.gateway import edge
from tests.lab.gateway.outside import Edge
from tests.lab.waypoint import shop
from tests.support.waiting import wait_until

EXTERNAL = {4: "198.51.100.9", 6: "2001:db8:9::9"}
NODE_PORT = 30999
FAMILIES = pytest.mark.parametrize("family", [4, 6])
PLACES = pytest.mark.parametrize("place", ["near", "far"])


@pytest.fixture(scope="module")
def balanced(edge_shop: Edge) -> Edge:
    """my-app with a load balancer, an external IP and a node port; node1 has a host-network pod."""
    service = shop.service("outside")
    service["spec"] |= {"type": "LoadBalancer", "externalIPs": list(EXTERNAL.values())}
    service["spec"]["ports"][0]["nodePort"] = NODE_PORT
    on_host = shop.pod("on-host", "node1", "default")
    on_host["spec"]["hostNetwork"] = True
    lab = edge_shop.lab
    assert lab.apply(service, on_host) == []
    buyer = f"cluster.local/ns/{shop.SHOP}/sa/buyer"
    assert lab.apply(edge.callers_of_my_app(buyer)) == []
    return edge_shop


def dialed(lab: Edge, where: str, family: int) -> tuple[str, int]:
    """The address and port to dial."""
    if where == "external IP":
        return EXTERNAL[family], 80
    if where == "node port":
        return {4: "172.30.0.1", 6: "fd00:30::1"}[family], NODE_PORT
    ingress = lab.lab.get("Service", "outside", shop.SHOP)["status"]["loadBalancer"]["ingress"]
    return next(each["ip"] for each in ingress if (":" in each["ip"]) == (family == 6)), 80


@FAMILIES
@PLACES
@pytest.mark.parametrize("where", ["load balancer", "external IP", "node port"])
def test_pods_reach_the_service_with_their_identity(
    balanced: Edge, where: str, place: str, family: int
) -> None:
    ip, port = dialed(balanced, where, family)

    def status(caller: str) -> int:
        return balanced.inside(f"{caller}-{place}", ip, port=port).status

    wait_until(lambda: status("buyer") == 200, "the buyer is served", timeout_s=10)
    versions = {balanced.inside(f"buyer-{place}", ip, port=port).version for _ in range(12)}
    assert versions == {"v1", "v2"}
    assert status("thief") == 0
