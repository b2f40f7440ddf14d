# SPDX-License-Identifier: Apache-2.0
"""The objects of the waypoint tests: two versions of an app behind a waypoint, and two callers.

    node1   buyer-near, thief-near, my-app v1, waypoint
    node2   buyer-far, thief-far, my-app v2

All are in the namespace `shop`. Buyers and thieves have service accounts of these names.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.lab.helpers.harness import APPS, named
from tests.lab.waypoint import tokens

Object = dict[str, Any]
SHOP = "shop"
WAYPOINT = "waypoint"
APP_PORT = 8000
ISSUER = "issuer@shop.example"
NODES = {"near": "node1", "far": "node2"}
VERSIONS = {"v1": "node1", "v2": "node2"}


def shop() -> list[Object]:
    """Everything except routes and policies."""
    label = {"istio.io/dataplane-mode": "ambient"}
    accounts = [named("ServiceAccount", name, SHOP) for name in ("buyer", "thief", "my-app")]
    callers = [
        pod(f"{account}-{place}", node, account)
        for account in ("buyer", "thief")
        for place, node in NODES.items()
    ]
    servers = [server(version, node) for version, node in VERSIONS.items()]
    services = [service("my-app"), *(service(f"my-app-{v}", version=v) for v in VERSIONS)]
    services[0]["metadata"]["labels"] = {"istio.io/use-waypoint": WAYPOINT}
    space = named("Namespace", SHOP)
    space["metadata"]["labels"] = label
    return [space, *accounts, *callers, *servers, *services, *waypoint()]


def waypoint(name: str = WAYPOINT, node: str = "node1", **deployment: Any) -> list[Object]:
    """A Gateway and its parameters: on a node, with one thread. `deployment`: more of its spec."""
    template = {
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node} if node else None,
            "containers": [{"name": "istio-proxy", "resources": {"limits": {"cpu": "1"}}}],
        }
    }
    overlay = {"spec": {"template": template, **deployment}}
    parameters = obj("v1", "ConfigMap", f"{name}-options", data={"deployment": json.dumps(overlay)})
    reference = {"group": "", "kind": "ConfigMap", "name": f"{name}-options"}
    spec = {
        "gatewayClassName": "istio-waypoint",
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        "infrastructure": {"parametersRef": reference},
    }
    return [parameters, obj("gateway.networking.k8s.io/v1", "Gateway", name, spec=spec)]


def server(version: str, node: str, name: str = "") -> Object:
    """A pod of my-app."""
    found = pod(name or f"my-app-{version}", node, "my-app")
    found["metadata"]["labels"] = {"app": "my-app", "version": version}
    container = found["spec"]["containers"][0]
    container["command"] = [sys.executable, str(APPS / "http_server.py"), version]
    container["ports"] = [{"containerPort": APP_PORT}]
    return found


def pod(name: str, node: str, account: str) -> Object:
    """A pod that sleeps."""
    container = {"name": "app", "image": "python", "command": ["sleep", "infinity"]}
    spec = {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "serviceAccountName": account,
        "containers": [container],
    }
    return obj("v1", "Pod", name, spec=spec, labels={"app": account, "version": "v7"})


def service(name: str, **selector: str) -> Object:
    """A service of the app, or of one of its versions."""
    port = {"name": "http", "port": 80, "targetPort": APP_PORT}
    return obj(
        "v1", "Service", name, spec={"selector": {"app": "my-app", **selector}, "ports": [port]}
    )


def route(*rules: Object, name: str = "my-app") -> Object:
    """An HTTPRoute of the service my-app."""
    parent = {"group": "", "kind": "Service", "name": "my-app", "port": 80}
    spec = {"parentRefs": [parent], "rules": list(rules)}
    return obj("gateway.networking.k8s.io/v1", "HTTPRoute", name, spec=spec)


def backend(version: str, weight: int = 1) -> Object:
    """A backendRef."""
    return {"name": f"my-app-{version}", "port": 80, "weight": weight}


def canary() -> Object:
    """90:10, except that a header selects v2."""
    header = {"headers": [{"name": "x-version", "value": "v2"}]}
    return route(
        {"matches": [header], "backendRefs": [backend("v2")]},
        {"backendRefs": [backend("v1", 90), backend("v2", 10)]},
    )


def policies() -> list[Object]:
    """Buyers may GET; with a token of the issuer, a buyer may also POST to /orders."""
    buyer = {"source": {"principals": [f"cluster.local/ns/{SHOP}/sa/buyer"]}}
    signed = {"source": {**buyer["source"], "requestPrincipals": [f"{ISSUER}/*"]}}
    rules = [
        {"from": [buyer], "to": [{"operation": {"methods": ["GET"], "notPaths": ["/orders*"]}}]},
        {
            "from": [signed],
            "to": [{"operation": {"methods": ["POST"], "paths": ["/orders/{*}"]}}],
        },
    ]
    target = [{"group": "", "kind": "Service", "name": "my-app"}]
    api = "security.istio.io/v1"
    jwt = [{"issuer": ISSUER, "jwks": tokens.JWKS}]
    return [
        obj(
            api,
            "AuthorizationPolicy",
            "buyers",
            spec={"targetRefs": target, "action": "ALLOW", "rules": rules},
        ),
        obj(api, "RequestAuthentication", "issuer", spec={"targetRefs": target, "jwtRules": jwt}),
    ]


def obj(
    api: str, kind: str, name: str, labels: dict[str, str] | None = None, **parts: Any
) -> Object:
    """An object of the namespace `shop`."""
    metadata: Object = {"name": name, "namespace": SHOP}
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **parts}
