# SPDX-License-Identifier: Apache-2.0
"""A real Envoy fetches key sets from their URIs, and keeps them."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.envoy.security.certificate import self_signed
from tests.envoy.security.rig import Object, Rig, request_authentication
from tests.envoy.security.tokens import Issuer
from tests.support.ports import free_ports
from ztunnel.l7.api import request_authentication as parser
from ztunnel.l7.deployment.bootstrap import RUNTIME
from ztunnel.l7.security import jwt

ISSUER = Issuer("issuer")
HOST = ("host", "web")
LIMIT_BYTES = int(RUNTIME["http.async_response_buffer_limit"])


class KeyServer:
    """Serves `/keys`, and `/padded`, which exceeds Envoy's limit."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                padding = b" " * LIMIT_BYTES if self.path == "/padded" else b""
                body = ISSUER.jwks.encode() + padding
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]

    @contextmanager
    def running(self) -> Iterator[KeyServer]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


def fetched(uri: str, name: str = "fetched") -> list[Object]:
    fields = {"issuer": ISSUER.name, "jwksUri": uri, "timeout": "1s"}
    return [request_authentication(name, fields)]


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Accept servers on loopback, and trust the authority of a file, which is returned."""
    authority = tmp_path / "authority.pem"
    monkeypatch.setattr(parser, "_is_local", lambda host: False)
    monkeypatch.setattr(jwt, "SYSTEM_CA_FILE", str(authority))
    return authority


def status(rig: Rig, service: str, *, token: bool = True) -> int:
    return rig.call(service, headers=[HOST, *([ISSUER.bearer()] if token else [])]).status


@pytest.mark.usefixtures("patched")
def test_keys_are_fetched_once_and_failures_reject_only_tokens(tmp_path: Path) -> None:
    (closed,) = free_ports(1)
    with ExitStack() as stack:
        server = stack.enter_context(KeyServer().running())
        rig = Rig()
        rig.add("good", fetched(f"http://127.0.0.1:{server.port}/keys", "good"))
        rig.add("large", fetched(f"http://127.0.0.1:{server.port}/padded", "large"))
        rig.add("closed", fetched(f"http://127.0.0.1:{closed}/keys"))
        before = time.monotonic()
        stack.enter_context(rig.run(tmp_path))
        assert time.monotonic() - before < 5  # no server delays the listener
        assert [status(rig, "good") for _ in range(20)] == [200] * 20
        assert server.requests.count("/keys") <= 2  # in the background, and for the first token
        for service in ("large", "closed"):  # a failure concerns tokens only
            assert status(rig, service) == 401
            assert status(rig, service, token=False) == 200


@pytest.mark.parametrize(("name", "expected"), [("127.0.0.1", 200), ("192.0.2.1", 401)])
def test_server_of_keys_proves_its_name(
    patched: Path, tmp_path: Path, name: str, expected: int
) -> None:
    context = self_signed(name, patched)
    with KeyServer(context).running() as server:
        rig = Rig()
        rig.add("tls", fetched(f"https://127.0.0.1:{server.port}/keys"))
        with rig.run(tmp_path):
            assert status(rig, "tls") == expected
    assert bool(server.requests) is (expected == 200)


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost/keys",
        "http://127.0.0.1:15000/config_dump",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://0.0.0.0/",
        "http://169.254.169.254/latest/meta-data",
        "ftp://example.com/",
        "https://user:secret@example.com/",
        "https:///keys",
        "https://a b/",
        "https://example.com:99999/",
    ],
)
def test_uri_of_the_pod_itself_or_without_host_is_invalid(uri: str) -> None:
    rig = Rig()
    rig.add("service", fetched(uri))
    (problem,) = rig.world.compile().problems
    assert "jwksUri" in problem.message
    assert problem.reason == "Invalid"
