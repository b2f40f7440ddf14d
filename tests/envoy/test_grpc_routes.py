# SPDX-License-Identifier: Apache-2.0
"""HTTP/2, gRPC and WebSocket through a waypoint, and GRPCRoutes."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import dial, request
from tests.support.waypoint.envoy import running_envoy
from tests.support.waypoint.grpc_backend import GrpcBackend
from tests.support.waypoint.h2_client import H2Client
from tests.support.waypoint.world import World

LOOPBACK = "127.0.0.1"
ROUTES = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: routed}
spec:
  parentRefs: [{group: "", kind: Service, name: routed}]
  rules:
  - matches:
    - {method: {service: pkg.Echo}}
    backendRefs: [{name: g1, port: 80}]
  - matches:
    - {method: {service: pkg.Echo, method: Special}}
    - {method: {method: Anywhere}}
    - {method: {type: RegularExpression, service: "re[.].*", method: "Get.*"}}
    - {method: {service: pkg.Echo}, headers: [{name: version, value: two}]}
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-rule, value: special}]}
    backendRefs: [{name: g2, port: 80}]
  - matches:
    - {method: {service: pkg.Missing}}
    backendRefs: [{name: absent, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: conflicts}
spec:
  parentRefs: [{group: "", kind: Service, name: routed}]
  rules:
  - backendRefs: [{name: g2, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: weighted}
spec:
  parentRefs: [{group: "", kind: Service, name: weighted}]
  rules:
  - backendRefs: [{name: g1, port: 80, weight: 50}, {name: g2, port: 80, weight: 50}]
"""


@dataclass
class Mesh:
    port: int
    services: dict[str, tuple[str, int]]

    def client(self, service: str) -> H2Client:
        return H2Client(dial(self.port, self.services[service]))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    world = World().apply(ROUTES)
    with ExitStack() as stack:
        ports = [stack.enter_context(GrpcBackend(f"g{n}")).port for n in (1, 2)]
        web = stack.enter_context(Backend("web")).port
        for number, port in enumerate(ports, 1):
            world.service(f"g{number}", {80: "grpc"}, [port], waypoint="")
        services = {
            "balanced": world.service("balanced", {80: "grpc"}, ports),
            "plain": world.service("plain", {80: "http"}, [ports[0]]),
            "detected": world.service("detected", {80: ""}, [ports[0]]),
            "web": world.service("web", {80: "grpc-web"}, [ports[0]]),
            "http1": world.service("http1", {80: "http"}, [web]),
            "ws": world.service("ws", {80: "http"}, [stack.enter_context(_Upgrader()).port]),
            "routed": world.service("routed", {80: "grpc"}),
            "weighted": world.service("weighted", {80: "grpc"}),
        }
        with running_envoy(world.compile(), tmp_path_factory.mktemp("envoy")) as envoy:
            yield Mesh(envoy.port, services)


def test_calls_of_one_connection_are_balanced(mesh: Mesh) -> None:
    client = mesh.client("balanced")
    answers = [client.call("/pkg.Echo/Get") for _ in range(40)]
    assert {a.grpc_status for a in answers} == {0}
    counts = Counter(json.loads(a.message)["backend"] for a in answers)
    assert set(counts) == {"g1", "g2"}
    assert min(counts.values()) >= 10


@pytest.mark.parametrize("service", ["plain", "detected"])
def test_backend_gets_the_http_version_of_the_client(mesh: Mesh, service: str) -> None:
    assert mesh.client(service).call("/pkg.Echo/Get").grpc_status == 0


@pytest.mark.parametrize(
    ("method", "headers", "backend"),
    [
        ("/pkg.Echo/Get", {}, "g1"),
        ("/pkg.Echo/Special", {}, "g2"),
        ("/pkg.Echo/Get", {"version": "two"}, "g2"),
        ("/other.Service/Anywhere", {}, "g2"),
        ("/re.gex/GetMany", {}, "g2"),
    ],
)
def test_grpc_route_matches_methods(
    mesh: Mesh, method: str, headers: dict[str, str], backend: str
) -> None:
    answer = mesh.client("routed").call(method, b"", **headers)
    assert answer.grpc_status == 0
    received = json.loads(answer.message)
    assert (received["backend"], received["method"]) == (backend, method)
    assert ("x-rule" in received["headers"]) == (backend == "g2")


def test_call_that_no_route_matches_is_unimplemented(mesh: Mesh) -> None:
    assert mesh.client("routed").call("/pkg.Other/Get").grpc_status == 12
    assert mesh.client("routed").call("/pkg.EchoMore/Get").grpc_status == 12


def test_call_to_a_missing_backend_is_unavailable(mesh: Mesh) -> None:
    assert mesh.client("routed").call("/pkg.Missing/Get").grpc_status == 14


def test_calls_are_distributed_by_weight(mesh: Mesh) -> None:
    client = mesh.client("weighted")
    counts = Counter(json.loads(client.call("/a/B").message)["backend"] for _ in range(100))
    assert set(counts) == {"g1", "g2"}
    assert min(counts.values()) > 25


def test_grpc_web_is_translated(mesh: Mesh) -> None:
    headers = {"content-type": "application/grpc-web"}
    frame = b"\0\0\0\0\0"
    answer = request(mesh.port, mesh.services["web"], "POST", "/a/B", headers, body=frame)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/grpc-web+proto")
    assert b'"backend": "g1"' in answer.body
    assert b"grpc-status:0" in answer.body  # the trailers are a frame of the body


def test_websocket_is_upgraded(mesh: Mesh) -> None:
    with dial(mesh.port, mesh.services["ws"]) as sock:
        sock.sendall(
            b"GET /chat HTTP/1.1\r\nhost: ws\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1000)
        assert head.startswith(b"HTTP/1.1 101 ")
        sock.sendall(b"frame")
        assert sock.recv(100) == b"frame"


def test_plain_connect_is_not_forwarded(mesh: Mesh) -> None:
    with dial(mesh.port, mesh.services["http1"]) as sock:
        sock.sendall(b"CONNECT 10.0.0.1:22 HTTP/1.1\r\nhost: 10.0.0.1:22\r\n\r\n")
        assert b" 404 " in sock.recv(1000) or sock.recv(1) == b""


class _Upgrader:
    """Accepts one WebSocket and echoes what it receives."""

    def __init__(self) -> None:
        self._socket = socket.create_server((LOOPBACK, 0))
        self.port = int(self._socket.getsockname()[1])

    def __enter__(self) -> _Upgrader:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        sock, _ = self._socket.accept()
        with sock:
            while b"\r\n\r\n" not in sock.recv(4000):
                pass
            sock.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\n"
                b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
            )
            while data := sock.recv(1000):
                sock.sendall(data)
