# SPDX-License-Identifier: Apache-2.0
"""TCPRoutes and TLSRoutes with a Service as parent."""

from __future__ import annotations

import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.waypoint.client import dial
from tests.support.waypoint.envoy import running_envoy
from tests.support.waypoint.world import World

LOOPBACK = "127.0.0.1"


def route(kind: str, name: str, port: int, backends: str, hostnames: str = "") -> str:
    return f"""
---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}-{len(hostnames)}}}
spec:
  parentRefs: [{{group: "", kind: Service, name: {name}, port: {port}}}]
  {f"hostnames: [{hostnames}]" if hostnames else ""}
  rules:
  - backendRefs: [{backends}]
"""


@dataclass
class Mesh:
    port: int
    services: dict[str, tuple[str, int]]

    def banner(self, service: str) -> bytes:
        with dial(self.port, self.services[service]) as sock:
            try:
                sock.sendall(b"\n")
                return sock.recv(100)
            except ConnectionError:
                return b""

    def tls_banner(self, name: str) -> bytes:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with (
                dial(self.port, self.services["tls"]) as sock,
                context.wrap_socket(sock, server_hostname=name or None) as tls,
            ):
                return tls.recv(100)
        except (ConnectionError, ssl.SSLError):
            return b""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    world = World()
    directory = tmp_path_factory.mktemp("envoy")
    certificate = directory / "certificate.pem"
    issued = Authority().issue("spiffe://cluster.local/ns/default/sa/tls")
    certificate.write_bytes(issued.chain_pem + issued.key_pem)
    with ExitStack() as stack:
        for name in ("t1", "t2"):
            server = stack.enter_context(_BannerServer(name))
            world.service(name, {3000: "tcp"}, [server.port], waypoint="")
        for name in ("s1", "s2", "s3"):
            server = stack.enter_context(_BannerServer(name, certificate))
            world.service(name, {443: "tls"}, [server.port], waypoint="")
        services = {
            "weighted": world.service("weighted", {3000: "tcp"}),
            "absent": world.service("absent", {3000: "tcp"}),
            "over-http": world.service("over-http", {80: "http"}),
            "tls": world.service("tls", {443: "tls"}),
        }
        t1, t2 = "{name: t1, port: 3000, weight: %d}", "{name: t2, port: 3000, weight: %d}"
        world.apply(route("TCPRoute", "weighted", 3000, f"{t1 % 3}, {t2 % 1}"))
        world.apply(route("TCPRoute", "absent", 3000, "{name: nothing, port: 3000}"))
        world.apply(route("TCPRoute", "over-http", 80, t1 % 1))
        for name, hosts in (("s1", "a.example.com"), ("s2", "'*.example.com'"), ("s3", "'*.org'")):
            world.apply(route("TLSRoute", "tls", 443, f"{{name: {name}, port: 443}}", hosts))
        with running_envoy(world.compile(), directory) as envoy:
            yield Mesh(envoy.port, services)


def test_connections_are_distributed_by_weight(mesh: Mesh) -> None:
    counts = Counter(mesh.banner("weighted") for _ in range(100))
    assert set(counts) == {b"t1", b"t2"}
    assert 8 < counts[b"t2"] < 45  # expected 25, standard deviation 4.3


def test_connection_to_a_missing_backend_is_closed(mesh: Mesh) -> None:
    assert mesh.banner("absent") == b""


def test_tcp_route_that_names_an_http_port_forwards_bytes(mesh: Mesh) -> None:
    assert mesh.banner("over-http") == b"t1"


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("a.example.com", b"s1"),
        ("b.example.com", b"s2"),
        ("b.c.example.com", b"s2"),
        ("x.org", b"s3"),
        ("example.com", b""),
        ("other.net", b""),
        ("", b""),
    ],
)
def test_tls_route_selects_by_server_name(mesh: Mesh, name: str, backend: bytes) -> None:
    assert mesh.tls_banner(name) == backend


class _BannerServer:
    """Sends its name to each client, with TLS if there is a certificate."""

    def __init__(self, name: str, certificate: Path | None = None) -> None:
        self._name = name.encode()
        self._socket = socket.create_server((LOOPBACK, 0), backlog=200)
        self.port = int(self._socket.getsockname()[1])
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)

    def __enter__(self) -> _BannerServer:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            with sock:
                if self._context is None:
                    sock.recv(1)  # a close with unread data would reset the connection
                sock.sendall(self._name)
        except OSError:
            pass
