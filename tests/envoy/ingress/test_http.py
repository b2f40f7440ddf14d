# SPDX-License-Identifier: Apache-2.0
"""HTTP listeners of ingress gateways, with a real Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.world import World

GATEWAY = "default/edge"
OBJECTS = """
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  gatewayClassName: ztunnel
  listeners:
  - {name: all, port: 80, protocol: HTTP}
  - {name: wild, port: 80, protocol: HTTP, hostname: "*.example.com"}
  - {name: shop, port: 80, protocol: HTTP, hostname: shop.example.com}
  - {name: other, port: 8080, protocol: HTTP, hostname: other.example.com}
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge, sectionName: all}]
  rules:
  - backendRefs: [{name: web, port: 80}]
---
kind: HTTPRoute
metadata: {name: wild, namespace: default}
spec:
  parentRefs: [{name: edge, sectionName: wild}]
  hostnames: [a.example.com, "*.b.example.com", shop.example.com]
  rules:
  - backendRefs: [{name: wild, port: 80}]
---
kind: HTTPRoute
metadata: {name: shop, namespace: default}
spec:
  parentRefs: [{name: edge, sectionName: shop}, {name: edge, port: 8080}]
  rules:
  - matches: [{path: {value: /shop}}]
    backendRefs: [{name: shop, port: 80}]
  - matches: [{path: {value: /missing}}]
    backendRefs: [{name: missing, port: 80}]
  - matches: [{path: {value: /invalid}}]
    filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]
  - matches: [{path: {value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example.com}}]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    world = World()
    with Backend("web") as web, Backend("wild") as wild, Backend("shop") as shop:
        for backend in (web, wild, shop):
            world.service(backend.name, backends=[backend.port], waypoint="")
        world.apply(OBJECTS)
        directory: Path = tmp_path_factory.mktemp("envoy")
        with running_gateway(world.compile(GATEWAY), directory) as found:
            yield found


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("example.org", "/", "web"),
        ("example.org:8443", "/", "web"),  # the port does not matter
        ("example.com", "/", "web"),  # *.example.com does not cover it
        ("a.example.com", "/", "wild"),
        ("A.EXAMPLE.com", "/", "wild"),
        ("x.y.b.example.com", "/", "wild"),
        ("c.example.com", "/", 404),  # belongs to the listener `wild`, without a route
        ("shop.example.com", "/", 404),  # a route of `wild` does not get it
        ("shop.example.com", "/shop/1", "shop"),
        ("shop.example.com", "/missing", 500),
        ("shop.example.com", "/invalid", 500),
    ],
)
def test_most_specific_listener_and_hostname_get_the_request(
    gateway: RunningGateway, host: str, path: str, expected: str | int
) -> None:
    answer = fetch(gateway.ports[80], host, path)
    assert (answer.backend or answer.status) == expected


def test_other_hosts_get_404(gateway: RunningGateway) -> None:
    assert fetch(gateway.ports[8080], "example.org", "/shop").status == 404
    assert fetch(gateway.ports[8080], "other.example.com", "/shop").backend == "shop"


def test_redirect_names_the_listeners_port(gateway: RunningGateway) -> None:
    location = fetch(gateway.ports[80], "shop.example.com", "/moved/1").headers["location"]
    assert location == "http://new.example.com/moved/1"
    location = fetch(gateway.ports[8080], "other.example.com", "/moved").headers["location"]
    assert location == "http://new.example.com:8080/moved"


def test_client_address_is_appended_and_not_taken_from_the_client(
    gateway: RunningGateway,
) -> None:
    forged = {
        "x-forwarded-for": "203.0.113.7",
        "x-forwarded-proto": "https",
        "x-forwarded-client-cert": "URI=spiffe://cluster.local/ns/default/sa/admin",
        "x-envoy-internal": "true",
    }
    headers = fetch(gateway.ports[80], "example.org", headers=forged).received["headers"]
    first, last = headers["x-forwarded-for"].split(",")
    assert first == "203.0.113.7"
    assert last != first  # Envoy replaces 127.0.0.1 by the host's own
    assert headers["x-forwarded-proto"] == "http"
    assert "x-forwarded-client-cert" not in headers
    assert "x-envoy-internal" not in headers
