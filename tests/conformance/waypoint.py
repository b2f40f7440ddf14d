# SPDX-License-Identifier: Apache-2.0
"""The waypoint of the suite's namespaces, created before the suite creates its own objects.

The routes of the suite have Services as parents and mention no waypoint. As in Istio's ambient mode
a label of the namespace selects the waypoint for all its services.
"""

from __future__ import annotations

from typing import Any

from tests.support.nodes.objects import AMBIENT, metadata

SPACES = MESH, CONSUMER = "gateway-conformance-mesh", "gateway-conformance-mesh-consumer"
NAME, CLASS, PORT = "waypoint", "istio-waypoint", 15008
LABELS = {
    **AMBIENT,
    "istio.io/use-waypoint": NAME,
    "istio.io/use-waypoint-namespace": MESH,
}


def gateway(name: str, space: str) -> dict[str, Any]:
    """A waypoint for services, also of other namespaces."""
    listener = {
        "name": "mesh",
        "port": PORT,
        "protocol": "HBONE",
        "allowedRoutes": {"namespaces": {"from": "All"}},
    }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        **metadata(name, space, labels={"istio.io/waypoint-for": "service"}),
        "spec": {"gatewayClassName": CLASS, "listeners": [listener]},
    }
