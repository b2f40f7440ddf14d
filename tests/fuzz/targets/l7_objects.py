# SPDX-License-Identifier: Apache-2.0
"""Objects that configure L7, from JSON to Envoy's resources and the status of routes.

Compiling never raises, the resources can be encoded as JSON without surrogates, the routes of
another service and its cluster stay as they were, and the prediction never raises.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import msgspec

from tests.fuzz.target import Target
from tests.support.waypoint.world import World
from ztunnel.l7.compile import compile_gateway
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.names import TypeUrl
from ztunnel.l7.objects import L7_KINDS, l7_object
from ztunnel.l7.routing.attachment import ROUTE_KINDS, RouteIndex
from ztunnel.l7.routing.evaluate import RouteRequest, evaluate
from ztunnel.l7.routing.route_status import route_status

GATEWAY = "shop/waypoint"
# Kinds that apply to single services if they are in another namespace than the other service's.
_SEPARATE = (*ROUTE_KINDS, "ReferenceGrant")
_OTHER = "other/calm|80"


def _world() -> World:
    world = World()
    world.service("web", {80: "http", 81: "", 443: "tls"}, [80], namespace="shop", waypoint=GATEWAY)
    world.service("calm", {80: "http"}, [80], namespace="other", waypoint=GATEWAY)
    return world


_BEFORE = compile_gateway(_world().inputs, GATEWAY)


def put_objects(world: World, octets: bytes) -> set[str] | None:
    """Put the objects outside of namespace `other`; returns their kinds, None without JSON."""
    try:
        documents = msgspec.json.decode(octets)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    kinds = set()
    for document in documents if isinstance(documents, list) else [documents]:
        try:
            obj = l7_object(document) if isinstance(document, dict) else None
        except ValueError:
            continue
        if obj is not None and obj.namespace != "other":
            kinds.add(obj.kind)
            world.store.put(obj)
    return kinds


def check(octets: bytes) -> None:
    world = _world()
    kinds = put_objects(world, octets)
    if kinds is None:
        return
    config = compile_gateway(world.inputs, GATEWAY)
    json.dumps({k.value: v for k, v in config.resources.items()}).encode()
    if kinds <= set(_SEPARATE):
        _check_other_service(config)
    _check_routes(world)


def _check_other_service(config: GatewayConfig) -> None:
    for kind in (TypeUrl.ROUTE, TypeUrl.CLUSTER, TypeUrl.ENDPOINT):
        before, after = _BEFORE.resources[kind][_OTHER], config.resources[kind].get(_OTHER)
        if kind is not TypeUrl.ROUTE:
            assert after == before
        elif after != before:  # only consumer routes, for clients of their own namespace
            added = after["virtual_hosts"][0]["routes"][:-1] if after else []
            assert added
            assert all("filter_state" in each["match"] for each in added)


def _check_routes(world: World) -> None:
    index = RouteIndex()
    index.refresh(world.store)
    request = RouteRequest("GET", "/a/b?c=d", {"host": "web", "x": "1"}, "shop")
    for kind in ROUTE_KINDS:
        for obj in world.store.of_kind(kind):
            route_status(world.inputs, obj, index)
    for service in world.mesh.state.services():
        for port in service.ports:
            evaluate(world.inputs, service, port, request, index)


def _mutate(octets: bytes, chance: random.Random) -> bytes:
    """Replace, rename, copy or remove a few nodes of the tree."""
    try:
        documents = msgspec.json.decode(octets)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return octets
    for _ in range(chance.randint(1, 3)):
        _change(documents, chance)
    try:
        return msgspec.json.encode(documents)
    except (RecursionError, ValueError):
        return octets


def _change(node: Any, chance: random.Random) -> None:
    for _ in range(14):  # descend until a node is selected
        if not isinstance(node, dict | list) or not node:
            return
        key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.85:
            node = node[key]
            continue
        how = chance.randrange(4)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif how == 1 and isinstance(node, dict):
            node[chance.choice(_KEYS)] = node.pop(key)
        else:
            node[key] = copy.deepcopy(chance.choice(_ODD))
        return


_ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        80,
        443,
        65536,
        2**63 - 1,
        1.5,
        "",
        "/",
        "/a",
        "*",
        "shop",
        "other",
        "web",
    ),
    *(
        "calm",
        "Exact",
        "PathPrefix",
        "RegularExpression",
        "(",
        "a{1000}",
        "%REQ(x)%",
        "\0",
        "a\r\nb",
    ),
    *([], {}, [None], [{}], {"name": "web", "port": 80}, {"value": "/"}, "10s", "0s", "x" * 5000),
    *("ExtensionRef", "CORS", "URLRewrite", "RequestMirror", "Service", "Hostname", "Gateway"),
)
_KEYS = (
    *("matches", "filters", "backendRefs", "path", "headers", "type", "value", "name", "namespace"),
    *(
        "parentRefs",
        "rules",
        "timeouts",
        "retry",
        "kind",
        "group",
        "port",
        "weight",
        "requestMirror",
    ),
)


def _route(kind: str, rules: list[Any], **spec: Any) -> dict[str, Any]:
    parents = [{"group": "", "kind": "Service", "name": "web"}]
    parents.append({"group": "", "kind": "Service", "name": "calm", "namespace": "other"})
    metadata = {"name": "r", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"}
    spec = {"parentRefs": parents, "rules": rules, **spec}
    return {"kind": kind, "metadata": metadata, "spec": spec}


_BACKENDS = [
    {"name": "web", "port": 80, "weight": 9},
    {"name": "calm", "namespace": "other", "port": 80},
]
_HTTP = _route(
    "HTTPRoute",
    [
        {
            "matches": [
                {"path": {"type": "PathPrefix", "value": "/a"}, "method": "GET"},
                {"headers": [{"name": "x", "type": "RegularExpression", "value": "[0-9]+"}]},
                {"queryParams": [{"name": "c", "value": "d"}]},
            ],
            "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x"]}},
                {"type": "RequestMirror", "requestMirror": {"backendRef": _BACKENDS[0]}},
                {"type": "CORS", "cors": {"allowOrigins": ["https://*.b"], "maxAge": 5}},
                {"type": "URLRewrite", "urlRewrite": {"hostname": "a.b"}},
            ],
            "backendRefs": _BACKENDS,
            "timeouts": {"request": "10s", "backendRequest": "1s"},
            "retry": {"codes": [503], "attempts": 2, "backoff": "100ms"},
            "sessionPersistence": {"sessionName": "s", "type": "Cookie"},
        },
        {"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}}]},
    ],
)
_GRPC = _route(
    "GRPCRoute", [{"matches": [{"method": {"service": "a.B"}}], "backendRefs": _BACKENDS}]
)
_TLS = _route("TLSRoute", [{"backendRefs": _BACKENDS}], hostnames=["*.example", "a.example"])
_TCP = _route("TCPRoute", [{"backendRefs": _BACKENDS}])
_GRANT = {
    "kind": "ReferenceGrant",
    "metadata": {"name": "g", "namespace": "shop"},
    "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}],
        "to": [{"group": "", "kind": "Service"}],
    },
}
_POLICY = {
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "p", "namespace": "shop"},
    "spec": {
        "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "action": "DENY",
        "rules": [{"to": [{"operation": {"paths": ["/a/{*}"], "methods": ["GET"]}}]}],
    },
}
_RULE = {
    "kind": "DestinationRule",
    "metadata": {"name": "d", "namespace": "shop"},
    "spec": {
        "host": "web",
        "trafficPolicy": {
            "loadBalancer": {"simple": "ROUND_ROBIN"},
            "outlierDetection": {"consecutive5xxErrors": 5},
            "connectionPool": {"tcp": {"maxConnections": 10}},
        },
        "subsets": [{"name": "v1", "labels": {"version": "v1"}}],
    },
}

TARGET = Target(
    check,
    seeds=tuple(
        msgspec.json.encode(each)
        for each in (
            [_HTTP],
            [_GRPC],
            [_TLS, _TCP],
            [_HTTP, _GRANT],
            [_POLICY, _HTTP],
            [_RULE, _HTTP],
        )
    ),
    mutate=_mutate,
    words=tuple(f'"{kind}"'.encode() for kind in L7_KINDS),
    max_len=8000,
)
