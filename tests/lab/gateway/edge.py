# SPDX-License-Identifier: Apache-2.0
"""The objects of the gateway tests: the shop of the waypoint tests behind an ingress gateway.

    node1   edge (ingress gateway), buyer-near, thief-near, my-app v1, waypoint
    node2   buyer-far, thief-far, my-app v2

The namespace `shop` is STRICT. Only the gateway and buyers may call my-app.
"""

from __future__ import annotations

import json
from typing import Any

from tests.lab.waypoint import shop
from tests.lab.waypoint.shop import Object, obj

GATEWAY = "edge"
CLASS = "ztunnel"
SERVICE = f"{GATEWAY}-{CLASS}"
IDENTITY = f"cluster.local/ns/{shop.SHOP}/sa/{SERVICE}"
API = "gateway.networking.k8s.io/v1"


def edge() -> list[Object]:
    """The gateway with its route, and the policies."""
    return [
        *gateway(listener(80)),
        http_route(),
        strict(),
        callers_of_my_app(IDENTITY, f"cluster.local/ns/{shop.SHOP}/sa/buyer"),
        obj("telemetry.istio.io/v1", "Telemetry", "logs", spec={"accessLogging": [{}]}),
    ]


def listener(port: int, protocol: str = "HTTP", **fields: Any) -> Object:
    """A listener that is named after its protocol and port."""
    return {"name": f"{protocol.lower()}-{port}", "port": port, "protocol": protocol, **fields}


def gateway(*listeners: Object, node: str = "node1") -> list[Object]:
    """The gateway and its parameters: on a node, a Service that keeps the client's address."""
    template = {
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [{"name": "istio-proxy", "resources": {"limits": {"cpu": "1"}}}],
        }
    }
    data = {
        "deployment": json.dumps({"spec": {"template": template}}),
        "service": json.dumps({"spec": {"externalTrafficPolicy": "Local"}}),
    }
    parameters = obj("v1", "ConfigMap", f"{GATEWAY}-options", data=data)
    reference = {"group": "", "kind": "ConfigMap", "name": f"{GATEWAY}-options"}
    spec = {
        "gatewayClassName": CLASS,
        "listeners": list(listeners),
        "infrastructure": {"parametersRef": reference},
    }
    return [parameters, obj(API, "Gateway", GATEWAY, spec=spec)]


def http_route(service: str = "my-app") -> Object:
    """All requests at the gateway go to a service."""
    spec = {
        "parentRefs": [{"name": GATEWAY}],
        "rules": [{"backendRefs": [{"name": service, "port": 80}]}],
    }
    return obj(API, "HTTPRoute", "edge", spec=spec)


def strict() -> Object:
    """mTLS is required in the namespace."""
    return obj(
        "security.istio.io/v1", "PeerAuthentication", "strict", spec={"mtls": {"mode": "STRICT"}}
    )


def policy(name: str, action: str, *rules: Object, **target: Any) -> Object:
    """An AuthorizationPolicy. `target`: selector or targetRefs."""
    spec = {"action": action, "rules": list(rules), **target}
    return obj("security.istio.io/v1", "AuthorizationPolicy", name, spec=spec)


def of_gateway() -> dict[str, Any]:
    """Selects the pods of the gateway."""
    label = "gateway.networking.k8s.io/gateway-name"
    return {"selector": {"matchLabels": {label: GATEWAY}}}


def callers_of_my_app(*principals: str) -> Object:
    """Only these identities may call my-app: its nodes enforce it."""
    return policy(
        "callers",
        "ALLOW",
        {"from": [{"source": {"principals": list(principals)}}]},
        selector={"matchLabels": {"app": "my-app"}},
    )
