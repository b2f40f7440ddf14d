# SPDX-License-Identifier: Apache-2.0
"""A real Envoy asks external authorizers as policies of action CUSTOM require."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from tests.envoy.security.rig import Object, Rig, authorization_policy, rule
from tests.support.ports import free_ports
from tests.support.waypoint.backend import Backend
from ztunnel.l7.security.request import Connection, HttpRequest
from ztunnel.l7.security.simulate import simulate
from ztunnel.mesh.model import Service, ServicePort, SocketAddress

_OK = b"\x0a\x00"  # CheckResponse{status{}}
_DENIED = b"\x0a\x02\x08\x07"  # CheckResponse{status{code: PERMISSION_DENIED}}
SECRET = [rule(None, {"paths": ["/secret*"]})]


class GrpcAuthorizer:
    """envoy.service.auth.v3.Authorization: allows requests whose message contains `let-me-in`."""

    def __init__(self) -> None:
        self.checks: list[bytes] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(self._check)
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "envoy.service.auth.v3.Authorization", {"Check": handler}
                ),
            )
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> GrpcAuthorizer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None)

    def _check(self, request: bytes, context: Any) -> bytes:
        self.checks.append(request)
        return _OK if b"let-me-in" in request or not self.wants_http(request) else _DENIED

    @staticmethod
    def wants_http(request: bytes) -> bool:
        return b"/secret" in request or b"10.66.66.66" in request


def _http_decision(request: dict[str, Any]) -> tuple[int, dict[str, str]]:
    headers = request["headers"]
    if headers.get("x-password") == "let-me-in" and headers.get("x-from") == "waypoint":
        return 200, {"x-user": "alice", "x-hidden": "1"}
    return 418, {"x-reason": "password", "x-hidden": "1"}


def custom(name: str, provider: str, rules: list[Object] = SECRET, **spec: Any) -> list[Object]:
    return [authorization_policy(name, rules, "CUSTOM", provider={"name": provider}, **spec)]


def service(rig: Rig, name: str, port: int) -> str:
    """A service at loopback, where the test's authorizer listens; returns its hostname."""
    hostname = f"{name}.default.svc.cluster.local"
    rig.world.mesh.put(
        Service(
            namespace="default",
            name=name,
            vips=("127.0.0.1",),
            hostname=hostname,
            ports=(ServicePort(port, "p"),),
        )
    )
    return hostname


class Running:
    """The rig and its authorizers."""

    def __init__(self, rig: Rig, http: Backend, grpc_server: GrpcAuthorizer) -> None:
        self.rig = rig
        self.http = http
        self.grpc = grpc_server

    def status(self, name: str, path: str = "/secret", password: str = "") -> int:
        headers = [("host", "web"), *([("x-password", password)] if password else [])]
        return self.rig.call(name, path=path, headers=headers).status


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    (closed,) = free_ports(1)
    rig = Rig()
    with ExitStack() as stack:
        http = stack.enter_context(Backend("authorizer", _http_decision))
        grpc_server = stack.enter_context(GrpcAuthorizer())
        over_http = {
            "service": service(rig, "http-authorizer", http.port),
            "port": http.port,
            "pathPrefix": "/check",
            "includeRequestHeadersInCheck": ["x-password"],
            "includeAdditionalHeadersInCheck": {"x-from": "waypoint"},
            "headersToUpstreamOnAllow": ["x-user"],
            "headersToDownstreamOnDeny": ["x-reason"],
        }
        over_grpc = {
            "service": service(rig, "grpc-authorizer", grpc_server.port),
            "port": grpc_server.port,
        }
        absent = {"service": service(rig, "absent", closed), "port": closed, "timeout": "1s"}
        rig.world.mesh_config = {
            "extensionProviders": [
                {"name": "http", "envoyExtAuthzHttp": over_http},
                {"name": "grpc", "envoyExtAuthzGrpc": over_grpc},
                {"name": "absent", "envoyExtAuthzGrpc": {**absent, "statusOnError": "503"}},
                {"name": "open", "envoyExtAuthzGrpc": {**absent, "failOpen": True}},
                {"name": "unknown-service", "envoyExtAuthzGrpc": {"service": "x.y", "port": 1}},
                {"name": "invalid", "envoyExtAuthzGrpc": {"service": "x.y", "port": "1"}},
                {"name": "spans", "zipkin": {}},
            ]
        }
        for name in ("http", "grpc", "absent", "open", "unknown-service", "invalid", "spans"):
            rig.add(name, custom(name, name))
        rig.add("two", custom("two-a", "http") + custom("two-b", "grpc"))
        rig.add("dry", custom("dry", "http", dry_run=True))
        rig.add(
            "and-deny",
            [
                *custom("and-deny", "grpc"),
                authorization_policy("and-deny-too", [rule(None, {"methods": ["GET"]})], "DENY"),
            ],
        )
        rig.add("tcp", custom("tcp", "grpc", [rule({"ipBlocks": ["10.66.66.66"]})]), protocol="tcp")
        rig.add("tcp-http", custom("tcp-http", "http"), protocol="tcp")
        stack.enter_context(rig.run(tmp_path_factory.mktemp("custom")))
        yield Running(rig, http, grpc_server)


@pytest.mark.parametrize("provider", ["http", "grpc", "two"])
def test_authorizer_decides_about_matching_requests(running: Running, provider: str) -> None:
    denied = 418 if provider == "http" else 403
    assert running.status(provider) == denied
    assert running.status(provider, password="let-me-in") == 200


@pytest.mark.parametrize("provider", ["http", "grpc", "invalid", "absent"])
def test_authorizer_is_not_asked_about_other_requests(running: Running, provider: str) -> None:
    before = len(running.http.requests), len(running.grpc.checks)
    assert running.status(provider, "/public") == 200
    assert (len(running.http.requests), len(running.grpc.checks)) == before


def test_http_authorizer_gets_and_returns_selected_headers(running: Running) -> None:
    reply = running.rig.call("http", path="/secret/1", headers=[("host", "web"), ("x-other", "1")])
    assert reply.headers["x-reason"] == "password"
    assert "x-hidden" not in reply.headers
    request = running.http.requests[-1]
    assert request["path"] == "/check/secret/1"
    assert request["headers"]["host"] == "web"
    assert "x-other" not in request["headers"]
    forged = [("host", "web"), ("x-password", "let-me-in"), ("x-user", "root")]
    assert running.rig.call("http", path="/secret", headers=forged).status == 200
    assert running.rig.backend.requests[-1]["headers"]["x-user"] == "alice"


def test_failure_of_an_authorizer_denies_unless_configured(running: Running) -> None:
    assert running.status("absent") == 503
    assert running.status("open") == 200


@pytest.mark.parametrize("provider", ["unknown-service", "invalid", "spans"])
def test_unusable_provider_denies_what_the_policy_matches(running: Running, provider: str) -> None:
    assert running.status(provider, password="let-me-in") == 403
    assert running.status(provider, "/public") == 200
    problems = running.rig.world.compile().problems
    assert any(provider in p.message and p.reason == "ProviderNotFound" for p in problems)


def test_dry_run_does_not_ask(running: Running) -> None:
    before = len(running.http.requests)
    assert running.status("dry") == 200
    assert len(running.http.requests) == before


def test_deny_policies_apply_after_the_authorizer(running: Running) -> None:
    assert running.status("and-deny", password="let-me-in") == 403


def _is_open(running: Running, name: str, source: str) -> bool:
    """Whether a TCP connection reaches the backend."""
    with running.rig.connect(name, source=(source, 1)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
        try:
            return sock.recv(100).startswith(b"HTTP/1.1 200")
        except (TimeoutError, ConnectionError):
            return False


def test_authorizer_decides_about_tcp_connections(running: Running) -> None:
    assert _is_open(running, "tcp", "10.1.1.1")
    assert not _is_open(running, "tcp", "10.66.66.66")


def test_http_authorizer_denies_tcp_connections(running: Running) -> None:
    assert not _is_open(running, "tcp-http", "10.1.1.1")


def test_prediction_names_the_authorizers(running: Running) -> None:
    connection = Connection(destination=SocketAddress("10.96.0.1", 80))
    for path, expected in (("/secret", ("grpc", "http")), ("/public", ())):
        decision = simulate(
            running.rig.world.inputs,
            running.rig.destination("two"),
            connection,
            HttpRequest(path=path),
        )
        assert decision.authorizers == expected
