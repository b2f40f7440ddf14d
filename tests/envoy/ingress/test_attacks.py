# SPDX-License-Identifier: Apache-2.0
"""Hostile clients of an ingress gateway. docs/concepts/gateways.md has the table of them.

The limits in time are those of the configuration, shortened in a copy of it.
"""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.waiting import wait_until
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.world import World
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.deployment.bootstrap import BootstrapSettings, bootstrap
from ztunnel.l7.names import TypeUrl

HOST = b"Host: shop.example\r\n"
IDLE_CONNECTIONS = 10_000
MAX_BYTES_PER_CONNECTION = 16 << 10  # in Envoy; 8 KiB measured
TIMEOUT_S = 10.0
OBJECTS = """
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  gatewayClassName: ztunnel
  listeners:
  - {name: http, port: 80, protocol: HTTP}
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  hostnames: [shop.example]
  rules:
  - matches: [{path: {value: /public}}]
    backendRefs: [{name: web, port: 80}]
"""


def compiled(backend: Backend) -> GatewayConfig:
    world = World()
    world.service("web", backends=[backend.port], waypoint="")
    world.apply(OBJECTS)
    return world.compile("default/edge")


def manager(config: GatewayConfig) -> dict[str, Any]:
    """The HttpConnectionManager, to be changed in place."""
    (listener,) = config.resources[TypeUrl.LISTENER].values()
    found: dict[str, Any] = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    return found


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend("web") as found:
        yield found


@pytest.fixture(scope="module")
def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    overload = bootstrap(BootstrapSettings("default/edge", "edge", "127.0.0.1", 1 << 30))
    extra = {"overload_manager": overload["overload_manager"]}
    with running_gateway(compiled(backend), tmp_path_factory.mktemp("envoy"), extra) as found:
        yield found


@pytest.fixture
def impatient(backend: Backend, tmp_path: Path) -> Iterator[RunningGateway]:
    """A gateway whose time limits are a hundredth of the real ones."""
    config = compiled(backend)
    found = manager(config)
    found["request_headers_timeout"] = _hundredth(found["request_headers_timeout"])
    options = dict(found["common_http_protocol_options"])
    found["common_http_protocol_options"] = options | {
        "idle_timeout": _hundredth(options["idle_timeout"])
    }
    with running_gateway(config, tmp_path) as running:
        yield running


def _hundredth(duration: str) -> str:
    return f"{float(duration.rstrip('s')) / 100:g}s"


def exchange(gateway: RunningGateway, request: bytes) -> bytes:
    """All that the gateway sends until it closes, or is silent for half a second."""
    with socket.create_connection(("127.0.0.1", gateway.ports[80]), TIMEOUT_S) as sock:
        sock.sendall(request)
        found = b""
        sock.settimeout(TIMEOUT_S)
        while True:
            try:
                part = sock.recv(65536)
            except (TimeoutError, ConnectionResetError):
                return found
            if not part:
                return found
            found += part
            sock.settimeout(0.5)


SMUGGLED = b"GET /public/smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
AMBIGUOUS = {
    "CL.TE": b"Content-Length: 6\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "TE.CL": CHUNKED + b"Content-Length: 4\r\n\r\n5c\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "signed length": b"Content-Length: +5\r\n\r\nhello",
    "space before the colon": b"Content-Length : 5\r\n\r\nhello",
    "chunked is not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "control before the coding": b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "obs-fold": b"X-A: 1\r\n " + CHUNKED + b"\r\n0\r\n\r\n",
    "obs-fold of the coding": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "NUL in a value": b"X-A: a\x00b\r\n\r\n",
    "CR in a value": b"X-A: a\rb\r\n\r\n",
    "overflowing chunk size": CHUNKED + b"\r\nffffffffffffffff1\r\n",
    "chunk extension": CHUNKED + b"\r\n5;\r\nhello\r\n",
    "chunk that ends with LF": CHUNKED + b"\r\n5\nhello\r\n0\r\n\r\n",
}
REWRITTEN = ("obs-fold", "obs-fold of the coding", "CR in a value")  # to one line, RFC 9112, 5.2


class Recorder:
    """A server that records the bytes of each connection and answers each read with status 200."""

    def __init__(self) -> None:
        self.connections: list[bytearray] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                self.connections.append(bytearray())
                threading.Thread(
                    target=self._serve, args=(sock, self.connections[-1]), daemon=True
                ).start()

    def _serve(self, sock: socket.socket, received: bytearray) -> None:
        with contextlib.suppress(OSError), sock:
            while data := sock.recv(65536):
                received += data
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


def strict_requests(stream: bytes) -> list[bytes]:
    """The request lines in a stream, as a server without leniency reads it. Raises ValueError."""
    found: list[bytes] = []
    while stream:
        head, end, stream = stream.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        if not end:
            return found
        found.append(line)
        values: dict[bytes, bytes] = {}
        for each in fields:
            name, colon, value = each.partition(b":")
            if not colon or name != name.strip() or not name or re.search(rb"[\x00-\x1f]", value):
                raise ValueError(f"invalid field {each!r}")
            if name in values and name in (b"content-length", b"transfer-encoding", b"host"):
                raise ValueError(f"{name!r} twice")
            values[name] = value.strip()
        if b"transfer-encoding" in values:
            if values[b"transfer-encoding"] != b"chunked" or b"content-length" in values:
                raise ValueError(f"ambiguous length {values}")
            stream = _after_chunks(stream)
        else:
            length = int(values.get(b"content-length", b"0"))
            stream = stream[length:]
    return found


def _after_chunks(stream: bytes) -> bytes:
    while stream:
        size, _, stream = stream.partition(b"\r\n")
        length = int(size, 16)
        stream = stream[length + 2 :]
        if not length:
            return stream
    return b""


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningGateway, Recorder]]:
    with Recorder() as recorder:
        world = World()
        world.service("web", backends=[recorder.port], waypoint="")
        world.apply(OBJECTS)
        directory = tmp_path_factory.mktemp("envoy")
        with running_gateway(world.compile("default/edge"), directory) as found:
            yield found, recorder


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_lengths_smuggle_no_request(
    recorded: tuple[RunningGateway, Recorder], name: str
) -> None:
    running, recorder = recorded
    for each in recorder.connections:
        each.clear()
    request = b"POST /public HTTP/1.1\r\n" + HOST + AMBIGUOUS[name] + SMUGGLED
    answer = exchange(running, request)
    forwarded = [line for each in recorder.connections for line in strict_requests(bytes(each))]
    if name in REWRITTEN:  # request and what follows are two requests to everyone
        assert len(forwarded) == answer.count(b"HTTP/1.1 200")
    else:
        assert answer.split(b" ")[1] in (b"400", b"501")
        assert forwarded in ([], [b"POST /public HTTP/1.1"])  # a bad chunk ends what has begun


@pytest.mark.parametrize(
    "line",
    [
        b"GET /public HTTP/1.1\n",
        b"GET  /public HTTP/1.1\r\n",
        b"GET /public HTTP/9.9\r\n",
        b"GET http://other.example/public HTTP/1.1\r\n",
    ],
)
def test_request_lines_with_two_meanings_reach_no_other_host(
    gateway: RunningGateway, backend: Backend, line: bytes
) -> None:
    backend.requests.clear()
    answer = exchange(gateway, line + HOST + b"\r\n")
    for received in backend.requests:
        assert (received["path"], received["headers"]["host"]) == ("/public", "shop.example")
    if not backend.requests:
        assert not answer or answer.split(b" ")[1] in (b"400", b"404", b"426", b"505")


def test_a_second_host_header_is_rejected(gateway: RunningGateway, backend: Backend) -> None:
    backend.requests.clear()
    exchange(gateway, b"GET /public HTTP/1.1\r\n" + HOST + b"Host: admin.example\r\n\r\n")
    assert [r for r in backend.requests if "admin" in r["headers"]["host"]] == []


@pytest.mark.parametrize(
    "path", ["/admin", "/public/../admin", "/public/%2e%2e/admin", "/public\\..\\admin", "//admin"]
)
def test_paths_outside_the_route_are_not_forwarded(gateway: RunningGateway, path: str) -> None:
    assert fetch(gateway.ports[80], "shop.example", path).status in (400, 404)


def h2_request(gateway: RunningGateway, headers: list[tuple[str, str]], body: bytes) -> str:
    """The status of one HTTP/2 request that no sane client sends; `reset` without a response."""
    config = h2.config.H2Configuration(
        header_encoding="utf-8",
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
    )
    client = h2.connection.H2Connection(config)
    with socket.create_connection(("127.0.0.1", gateway.ports[80]), TIMEOUT_S) as sock:
        client.initiate_connection()
        client.send_headers(1, headers, end_stream=not body)
        if body:
            client.send_data(1, body, end_stream=True)
        sock.sendall(client.data_to_send())
        while True:
            data = sock.recv(65536)
            if not data:
                return "reset"
            for event in client.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    return next(str(v) for k, v in event.headers if str(k) == ":status")
                if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return "reset"


BASE = [
    (":method", "POST"),
    (":path", "/public"),
    (":scheme", "http"),
    (":authority", "shop.example"),
]


@pytest.mark.parametrize(
    ("extra", "body"),
    [
        ([("content-length", "0")], SMUGGLED),
        ([("content-length", "99")], b"hello"),
        ([("transfer-encoding", "chunked")], b"0\r\n\r\n" + SMUGGLED),
        ([("x-a", "1\r\nTransfer-Encoding: chunked")], b"0\r\n\r\n" + SMUGGLED),
        ([("x-a\r\ntransfer-encoding", "chunked")], b"0\r\n\r\n"),
        ([("x-a: 1\r\nx-b", "2")], b""),
        ([("connection", "transfer-encoding")], b""),
        ([("host", "admin.example")], b""),
    ],
)
def test_http2_requests_do_not_become_two_requests(
    gateway: RunningGateway, backend: Backend, extra: list[tuple[str, str]], body: bytes
) -> None:
    backend.requests.clear()
    h2_request(gateway, [*BASE, *extra], body)
    fetch(gateway.ports[80], "shop.example", "/public/after")  # follows on the same connection
    assert [r["path"] for r in backend.requests][-1] == "/public/after"
    assert not [r for r in backend.requests if "smuggled" in r["path"]]
    for received in backend.requests:
        assert received["headers"]["host"] == "shop.example"
        assert "x-b" not in received["headers"]


@pytest.mark.parametrize("path", ["/public HTTP/1.1\r\nHost: x\r\n\r\nGET /admin", "/public\r\n"])
def test_http2_paths_with_line_ends_are_rejected(
    gateway: RunningGateway, backend: Backend, path: str
) -> None:
    backend.requests.clear()
    headers = [(name, path if name == ":path" else value) for name, value in BASE]
    assert h2_request(gateway, headers, b"") in ("reset", "400")
    assert backend.requests == []


@pytest.mark.parametrize(
    "headers",
    [b"X-A: " + b"a" * (64 << 10) + b"\r\n", b"".join(b"X-%d: 1\r\n" % n for n in range(110))],
    ids=["64 KiB", "110 headers"],
)
def test_oversized_headers_are_rejected(gateway: RunningGateway, headers: bytes) -> None:
    answer = exchange(gateway, b"GET /public HTTP/1.1\r\n" + HOST + headers + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431")


def test_a_request_line_without_end_is_rejected(gateway: RunningGateway) -> None:
    answer = exchange(gateway, b"GET /public" + b"a" * (128 << 10))
    assert not answer or answer.startswith(b"HTTP/1.1 4")


def closed_after(gateway: RunningGateway, sent: bytes) -> float:
    """In how many seconds the gateway ends a connection that sends nothing more."""
    with socket.create_connection(("127.0.0.1", gateway.ports[80]), TIMEOUT_S) as sock:
        began = time.monotonic()
        sock.sendall(sent)
        while sock.recv(65536):
            pass
        return time.monotonic() - began


def test_slow_headers_are_cut_off(impatient: RunningGateway) -> None:
    assert closed_after(impatient, b"GET /public HTTP/1.1\r\n" + HOST + b"X-A: ") < 2


def test_silent_connections_are_cut_off(impatient: RunningGateway) -> None:
    assert closed_after(impatient, b"") < 6


def test_many_streams_of_a_connection_are_limited(gateway: RunningGateway) -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    with socket.create_connection(("127.0.0.1", gateway.ports[80]), TIMEOUT_S) as sock:
        client.initiate_connection()
        sock.sendall(client.data_to_send())
        while not client.remote_settings.max_concurrent_streams < 1000:
            client.receive_data(sock.recv(65536))
    assert client.remote_settings.max_concurrent_streams == 100


def test_idle_connections_cost_little_and_block_no_request(gateway: RunningGateway) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * IDLE_CONNECTIONS + 1000), hard))
    stat = "http.ingress.downstream_cx_active"
    before = _memory(gateway)
    try:
        with ExitStack() as opened:
            for _ in range(IDLE_CONNECTIONS):
                address = ("127.0.0.1", gateway.ports[80])
                opened.enter_context(socket.create_connection(address, TIMEOUT_S))
            wait_until(lambda: gateway.envoy.stat(stat) >= IDLE_CONNECTIONS, "all connections")
            began = time.monotonic()
            for _ in range(100):
                assert fetch(gateway.ports[80], "shop.example", "/public").status == 200
            assert time.monotonic() - began < TIMEOUT_S
            grown = _memory(gateway) - before
        assert grown < IDLE_CONNECTIONS * MAX_BYTES_PER_CONNECTION, grown
        wait_until(lambda: gateway.envoy.stat(stat) < 100, "the connections to end")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _memory(gateway: RunningGateway) -> int:
    """Resident bytes of Envoy."""
    pages = Path(f"/proc/{gateway.envoy.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()
