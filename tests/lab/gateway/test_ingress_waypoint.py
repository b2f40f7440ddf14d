# SPDX-License-Identifier: Apache-2.0
"""An ingress gateway in front of a service that has a waypoint: istio.io/ingress-use-waypoint."""

from __future__ import annotations

import pytest

from tests.lab.gateway import edge
from tests.lab.gateway.outside import Edge
from tests.lab.waypoint import shop
from tests.support.waiting import wait_until

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@FAMILIES
def test_ingress_use_waypoint_sends_requests_through_the_waypoint(
    edge_shop: Edge, family: int
) -> None:
    """A policy of the waypoint denies what the gateway alone would admit."""
    denied = edge.policy(
        "at-waypoint",
        "DENY",
        {
            "from": [{"source": {"principals": [edge.IDENTITY]}}],
            "to": [{"operation": {"paths": ["/no"]}}],
        },
        targetRefs=[{"group": "", "kind": "Service", "name": "my-app"}],
    )
    waypoint = f"cluster.local/ns/{shop.SHOP}/sa/{shop.WAYPOINT}"
    through = shop.service("my-app")
    labels = {"istio.io/use-waypoint": shop.WAYPOINT, "istio.io/ingress-use-waypoint": "true"}
    through["metadata"]["labels"] = labels
    lab = edge_shop.lab
    assert lab.apply(denied) == []
    assert edge_shop.outside("/no", family=family).status == 200
    try:
        assert lab.apply(edge.callers_of_my_app(waypoint), through) == []
        wait_until(
            lambda: edge_shop.outside("/no", family=family).status == 403,
            "requests pass the waypoint",
            timeout_s=10,
        )
        wait_until(lambda: edge_shop.outside("/", family=family).status == 200)
    finally:
        labels["istio.io/ingress-use-waypoint"] = "false"
        buyer = f"cluster.local/ns/{shop.SHOP}/sa/buyer"
        assert lab.apply(through, edge.callers_of_my_app(edge.IDENTITY, buyer)) == []
        assert lab.delete("AuthorizationPolicy", "at-waypoint", shop.SHOP) == []
        edge_shop.wait_until_served()
