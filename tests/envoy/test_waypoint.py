# SPDX-License-Identifier: Apache-2.0
"""A waypoint without routes: destinations, protocols, and headers that clients may not set."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import DEFAULT_PEER, dial, request
from tests.support.waypoint.envoy import RunningEnvoy, running_envoy
from tests.support.waypoint.world import GATEWAY, LOOPBACK, World
from ztunnel.l7.names import PeerState, TypeUrl


@dataclass
class Waypoint:
    envoy: RunningEnvoy
    web: tuple[str, int]
    detected: tuple[str, int]
    empty: tuple[str, int]


@pytest.fixture(scope="module")
def waypoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waypoint]:
    world = World()
    with Backend("web") as backend:
        destinations = {
            "web": world.service("web", backends=[backend.port]),
            "detected": world.service("detected", {4000: ""}, [backend.port]),
            "empty": world.service("empty"),
        }
        directory: Path = tmp_path_factory.mktemp("envoy")
        with running_envoy(world.compile(), directory) as envoy:
            yield Waypoint(envoy, **destinations)


def test_request_reaches_the_services_endpoint(waypoint: Waypoint) -> None:
    answer = request(waypoint.envoy.port, waypoint.web, path="/a?b=c")
    assert (answer.status, answer.backend) == (200, "web")
    assert answer.received["path"] == "/a?b=c"


def test_service_without_endpoints_answers_503(waypoint: Waypoint) -> None:
    assert request(waypoint.envoy.port, waypoint.empty).status == 503


def test_unknown_destination_is_closed(waypoint: Waypoint) -> None:
    with pytest.raises(OSError):
        request(waypoint.envoy.port, ("10.96.9.9", 80))


def test_unknown_port_of_a_service_is_closed(waypoint: Waypoint) -> None:
    with pytest.raises(OSError):
        request(waypoint.envoy.port, (waypoint.web[0], 81))


def test_connection_without_proxy_header_is_closed(waypoint: Waypoint) -> None:
    with socket.create_connection((LOOPBACK, waypoint.envoy.port), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
        assert _read_all(sock) == b""


def test_proxy_header_of_version_1_is_closed(waypoint: Waypoint) -> None:
    with socket.create_connection((LOOPBACK, waypoint.envoy.port), 10) as sock:
        vip, port = waypoint.web
        header = f"PROXY TCP4 10.0.0.1 {vip} 1234 {port}\r\n"
        sock.sendall(header.encode() + b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
        assert _read_all(sock) == b""


def test_tcp_service_that_sends_first_is_not_delayed(tmp_path: Path) -> None:
    world = World()
    with _LineServer() as port:
        plain = world.service("plain", {3000: "tcp"}, [port])
        world.service("detected", {4000: ""})  # requires an inspector, on its own port
        with running_envoy(world.compile(), tmp_path) as envoy, dial(envoy.port, plain) as sock:
            sock.settimeout(2)
            assert sock.recv(100) == b"hello\n"


def test_waypoint_of_pods_does_not_delay_declared_tcp_services(tmp_path: Path) -> None:
    world = World()
    world.pod("direct", (LOOPBACK,), waypoint=GATEWAY)
    with _LineServer() as port, Backend("web") as backend:
        plain = world.service("plain", {3000: "tcp"}, [port])
        with running_envoy(world.compile(), tmp_path) as envoy:
            with dial(envoy.port, plain) as sock:
                sock.settimeout(2)
                assert sock.recv(100) == b"hello\n"
            assert request(envoy.port, (LOOPBACK, backend.port)).backend == "web"


def test_other_namespaces_do_not_decide_what_is_http_for_pods() -> None:
    world = World()
    world.pod("direct", (LOOPBACK,), waypoint=GATEWAY)
    world.service("plain", {3000: "tcp"}, namespace="other")
    listener = world.compile().resources[TypeUrl.LISTENER]["waypoint"]
    assert "3000" not in str(listener["listener_filters"])


def test_new_services_leave_the_listeners_own_filters_unchanged() -> None:
    """Other changes of the listener than those of chains make Envoy drain its connections."""
    world = World()
    world.service("web")

    def without_chains() -> dict[str, Any]:
        listener = world.compile().resources[TypeUrl.LISTENER]["waypoint"]
        return {k: v for k, v in listener.items() if "chain" not in k}

    before = without_chains()
    world.service("http", {8000: "http"})
    world.service("undeclared", {9000: "", 9001: "unknown"})
    world.service("db", {3306: "tcp", 53: "tcp"})
    world.service("tls", {443: "tls"})
    assert without_chains() == before


def test_undeclared_port_serves_http_and_other_bytes(waypoint: Waypoint) -> None:
    assert request(waypoint.envoy.port, waypoint.detected).backend == "web"
    with dial(waypoint.envoy.port, waypoint.detected) as sock:
        sock.sendall(b"\x00\x01 no HTTP \r\n\r\n")
        assert b"400" in sock.recv(1000)  # by the backend, an HTTP server: Envoy would close


def test_pod_address_is_forwarded_to_the_port_dialed(tmp_path: Path) -> None:
    world = World()
    world.pod("direct", (LOOPBACK,), waypoint=GATEWAY)
    with Backend("web") as backend, running_envoy(world.compile(), tmp_path) as envoy:
        answer = request(envoy.port, (LOOPBACK, backend.port))
        assert (answer.status, answer.backend) == (200, "web")
        with pytest.raises(OSError):
            request(envoy.port, ("127.0.0.2", backend.port))


FORGED = {
    "x-forwarded-client-cert": "By=spiffe://a;URI=spiffe://b",
    "x-envoy-retry-on": "5xx",
    "x-envoy-max-retries": "9",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-internal": "true",
}


@pytest.mark.parametrize("origin", ["", "10.0.0.1", "127.0.0.1", "192.168.1.1, 10.0.0.1"])
def test_headers_of_the_client_are_not_trusted(waypoint: Waypoint, origin: str) -> None:
    headers = FORGED | ({"x-forwarded-for": origin} if origin else {})
    answer = request(waypoint.envoy.port, waypoint.web, headers=headers)
    assert answer.status == 200
    assert not FORGED.keys() & answer.received["headers"].keys()


def test_forwarded_headers_of_a_gateway_are_preserved(waypoint: Waypoint) -> None:
    headers = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}
    answer = request(waypoint.envoy.port, waypoint.web, headers=headers)
    assert headers.items() <= answer.received["headers"].items()


def test_path_is_normalized_as_by_istio(waypoint: Waypoint) -> None:
    answer = request(waypoint.envoy.port, waypoint.web, path="/a/../b//c%2Fd")
    assert answer.received["path"] == "/b//c%2Fd"


def test_ipv6_destination_and_dual_stack_pod(tmp_path: Path) -> None:
    world = World()
    with Backend("web") as backend:
        world.service("web", backends=[backend.port])
        service = world.mesh.state.service("default/web")
        assert service is not None
        (endpoint,) = service.endpoints
        second = msgspec.structs.replace(endpoint, address="::1")  # nothing listens there
        world.mesh.put(
            msgspec.structs.replace(
                service, vips=(*service.vips, "fd00::a:1"), endpoints=(second, endpoint)
            )
        )
        with running_envoy(world.compile(), tmp_path) as envoy:
            for vip in (*service.vips, "fd00::a:1"):
                answers = [request(envoy.port, (vip, 80)) for _ in range(6)]
                assert {a.backend for a in answers} == {"web"}
            assert envoy.stat("cluster.default/web|80.membership_total") == 1


def test_response_is_not_decorated(waypoint: Waypoint) -> None:
    answer = request(waypoint.envoy.port, waypoint.web)
    assert not [name for name in answer.headers if name.startswith("x-envoy")]
    assert "BaseHTTP" in answer.headers["server"]


def test_client_metadata_is_filter_state(tmp_path: Path) -> None:
    world = World()
    with Backend("web") as backend:
        web = world.service("web", backends=[backend.port])
        config = world.compile()
        (route,) = config.resources[TypeUrl.ROUTE].values()
        route["request_headers_to_add"] = [
            {"header": {"key": f"p-{each.name}", "value": f"%FILTER_STATE({each.value}:PLAIN)%"}}
            for each in PeerState
        ]
        with running_envoy(config, tmp_path) as envoy:
            received = request(envoy.port, web).received["headers"]
            assert {s: received.get(f"p-{s.name.lower()}") for s in DEFAULT_PEER} == DEFAULT_PEER
            nothing = request(envoy.port, web, peer={}).received["headers"]
            assert "p-identity" not in nothing


class _LineServer:
    """Accepts connections, and sends a line first."""

    def __enter__(self) -> int:
        self._socket = socket.create_server((LOOPBACK, 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            with sock:
                sock.sendall(b"hello\n")


def _read_all(sock: socket.socket) -> bytes:
    try:
        return b"".join(iter(lambda: sock.recv(1000), b""))
    except ConnectionResetError:
        return b""
