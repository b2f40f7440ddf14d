# SPDX-License-Identifier: Apache-2.0
"""Which routes and backends an ingress gateway serves, with a real Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.world import LOOPBACK, World

OBJECTS = """
kind: Namespace
metadata: {name: team, labels: {edge: allowed}}
---
kind: Namespace
metadata: {name: stranger}
---
kind: Gateway
metadata: {name: edge, namespace: infra}
spec:
  gatewayClassName: istio
  allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {edge: allowed}}}}
  listeners:
  - name: http
    port: 80
    protocol: HTTP
    allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {edge: allowed}}}}
  - name: all
    port: 81
    protocol: HTTP
    allowedRoutes: {namespaces: {from: All}, kinds: [{kind: HTTPRoute}]}
---
kind: ListenerSet
metadata: {name: mine, namespace: team}
spec:
  parentRef: {name: edge, namespace: infra}
  listeners:
  - {name: own, port: 80, protocol: HTTP, hostname: own.example.com}
  - {name: late, port: 82, protocol: HTTP}
---
kind: ListenerSet
metadata: {name: theirs, namespace: stranger}
spec:
  parentRef: {name: edge, namespace: infra}
  listeners: [{name: own, port: 83, protocol: HTTP}]
---
kind: HTTPRoute
metadata: {name: team, namespace: team, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: edge, namespace: infra}]
  hostnames: [team.example.com]
  rules:
  - backendRefs: [{name: team, port: 80}]
  - matches: [{path: {value: /shared}}]
    backendRefs: [{name: shared, namespace: infra, port: 80}]
  - matches: [{path: {value: /secret}}]
    backendRefs: [{name: secret, namespace: infra, port: 80}]
---
kind: ReferenceGrant
metadata: {name: shared, namespace: infra}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: team}]
  to: [{group: "", kind: Service, name: shared}]
---
kind: HTTPRoute
metadata: {name: stranger, namespace: stranger}
spec:
  parentRefs: [{name: edge, namespace: infra}, {kind: ListenerSet, name: theirs}]
  hostnames: [stranger.example.com, team.example.com]
  rules: [{backendRefs: [{name: stranger, port: 80}]}]
---
kind: HTTPRoute
metadata: {name: own, namespace: team}
spec:
  parentRefs: [{kind: ListenerSet, name: mine}]
  rules: [{backendRefs: [{name: team, port: 80}]}]
---
kind: GRPCRoute
metadata: {name: grpc, namespace: team}
spec:
  parentRefs: [{name: edge, namespace: infra}]
  hostnames: [team.example.com]
  rules:
  - matches: [{method: {service: shop.Cart}}]
    backendRefs: [{name: grpc, port: 80}]
"""
PLACES = {"team": "team", "grpc": "team", "shared": "infra", "secret": "infra"}


def _upgrade(request: dict[str, Any]) -> tuple[int, dict[str, str]]:
    if request["headers"].get("upgrade") != "websocket":
        return 200, {}
    return 101, {"upgrade": "websocket", "connection": "Upgrade"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    world = World()
    places = {**PLACES, "stranger": "stranger"}
    backends = {name: Backend(name, _upgrade) for name in places}
    for name, backend in backends.items():
        backend.__enter__()
        world.service(name, backends=[backend.port], namespace=places[name], waypoint="")
    world.apply(OBJECTS)
    directory: Path = tmp_path_factory.mktemp("envoy")
    with running_gateway(world.compile("infra/edge"), directory) as found:
        yield found
    for backend in backends.values():
        backend.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("port", "host", "path", "expected"),
    [
        (80, "team.example.com", "/", "team"),
        (80, "team.example.com", "/shared", "shared"),
        (80, "team.example.com", "/secret", 500),  # no ReferenceGrant
        (80, "team.example.com", "/shop.Cart/Add", 502),  # a GRPCRoute: the backend gets HTTP/2
        (80, "team.example.com", "/shop.Cartridge/Add", "team"),
        (80, "stranger.example.com", "/", 404),  # the namespace has not the label
        (81, "stranger.example.com", "/", "stranger"),
        (81, "team.example.com", "/", "team"),  # the routes of two namespaces: oldest first
        (81, "team.example.com", "/shop.Cart/Add", "team"),  # the listener has no GRPCRoutes
        (80, "own.example.com", "/", "team"),  # by a ListenerSet
        (82, "any.example.com", "/", "team"),
    ],
)
def test_route_serves_the_listeners_that_admit_it(
    gateway: RunningGateway, port: int, host: str, path: str, expected: str | int
) -> None:
    answer = fetch(gateway.ports[port], host, path)
    assert (answer.backend or answer.status) == expected


def test_listener_set_that_is_not_admitted_has_no_listener(gateway: RunningGateway) -> None:
    assert set(gateway.ports) == {80, 81, 82}


def test_service_behind_its_waypoint_gets_requests_at_its_address(tmp_path: Path) -> None:
    world = World().apply(
        """
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  gatewayClassName: ztunnel
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: PORT}]}]
""".replace("PORT", "8123")
    )
    with Backend("vip") as vip:
        world.service("web", {8123: "http"}, backends=[1])
        service = world.mesh.state.service("default/web")
        assert service is not None
        world.mesh.put(
            msgspec.structs.replace(service, vips=(LOOPBACK,), ingress_use_waypoint=True)
        )
        config = world.compile("default/edge")
        for assignment in config.resources.values():
            for each in assignment.values():
                if each.get("cluster_name"):
                    (endpoint,) = each["endpoints"][0]["lb_endpoints"]
                    address = endpoint["endpoint"]["address"]["socket_address"]
                    assert address == {"address": LOOPBACK, "port_value": 8123}
                    address["port_value"] = vip.port
        with running_gateway(config, tmp_path) as found:
            assert fetch(found.ports[80], "web").backend == "vip"


def test_websocket_upgrade_passes(gateway: RunningGateway) -> None:
    headers = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    answer = fetch(gateway.ports[80], "team.example.com", headers=headers)
    assert answer.status == 101
    assert answer.headers["upgrade"] == "websocket"
