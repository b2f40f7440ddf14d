# SPDX-License-Identifier: Apache-2.0
"""gRPC through an ingress gateway, with a real Envoy and a real gRPC server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ingress.certificates import GatewayCertificates
from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.grpc_backend import GrpcBackend
from tests.support.waypoint.h2_client import H2Client
from tests.support.waypoint.tls_client import client_context
from tests.support.waypoint.world import World

HOST = "shop.example.com"
UNIMPLEMENTED, UNAVAILABLE = 12, 14
OBJECTS = """
kind: Gateway
metadata:
  name: edge
  namespace: default
  annotations: {ztunnel.dev/gateway-certificates: '%s'}
spec:
  gatewayClassName: ztunnel
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}
---
kind: GRPCRoute
metadata: {name: cart, namespace: default}
spec:
  parentRefs: [{name: edge}]
  hostnames: [shop.example.com]
  rules:
  - matches: [{method: {service: shop.Cart}}]
    backendRefs: [{name: cart, port: 80}]
  - matches: [{method: {service: shop.Cart, method: Gone}}]
    backendRefs: [{name: missing, port: 80}]
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  hostnames: [shop.example.com]
  rules:
  - matches: [{path: {value: /web}}]
    backendRefs: [{name: web, port: 80}]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    directory: Path = tmp_path_factory.mktemp("grpc")
    with (
        pytest.MonkeyPatch.context() as patch,
        GrpcBackend("cart") as cart,
        Backend("web") as web,
    ):
        certificates = GatewayCertificates(directory, patch)
        certificates.add("web", HOST)
        world = World()
        world.service("cart", {80: ""}, [cart.port], waypoint="")  # declares no protocol
        world.service("web", backends=[web.port], waypoint="")
        world.apply(OBJECTS % certificates.annotation)
        with running_gateway(world.compile("default/edge"), directory) as found:
            yield found


def client(gateway: RunningGateway, port: int) -> H2Client:
    sock = socket.create_connection(("127.0.0.1", gateway.ports[port]), 10)
    if port == 443:
        return H2Client(client_context(("h2",)).wrap_socket(sock, server_hostname=HOST))
    return H2Client(sock)


@pytest.mark.parametrize("port", [80, 443])
def test_call_reaches_a_backend_that_declares_no_protocol(
    gateway: RunningGateway, port: int
) -> None:
    headers = {":authority": HOST, ":scheme": "https" if port == 443 else "http"}
    answer = client(gateway, port).call("/shop.Cart/Add", b"", **headers)
    assert answer.grpc_status == 0
    assert json.loads(answer.message)["method"] == "/shop.Cart/Add"


@pytest.mark.parametrize(
    ("authority", "method", "status"),
    [
        (HOST, "/shop.Cart/Gone", UNAVAILABLE),
        (HOST, "/shop.Order/Add", UNIMPLEMENTED),
        ("other.example.com", "/shop.Cart/Add", UNIMPLEMENTED),
    ],
)
def test_call_without_a_backend_gets_the_status_of_grpc(
    gateway: RunningGateway, authority: str, method: str, status: int
) -> None:
    answer = client(gateway, 80).call(method, b"", **{":authority": authority})
    assert answer.grpc_status == status


def test_http_route_serves_the_same_host(gateway: RunningGateway) -> None:
    answer = client(gateway, 80).request("GET", "/web", {":authority": HOST})
    assert answer.status == 200
