# SPDX-License-Identifier: Apache-2.0
"""TLS and TCP listeners of ingress gateways, with a real Envoy."""

from __future__ import annotations

import copy
import json
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.certificate_authority import CertificateAuthority
from tests.support.ingress.certificates import GatewayCertificates
from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.waiting import wait_until
from tests.support.waypoint.stream_backend import StreamBackend
from tests.support.waypoint.tls_client import client_context, handshake
from tests.support.waypoint.world import World
from ztunnel.l7.inputs import AccessLogEncoding, Settings

GATEWAY = "default/edge"
OBJECTS = """
kind: Gateway
metadata:
  name: edge
  namespace: default
  annotations: {ztunnel.dev/gateway-certificates: '%s'}
spec:
  gatewayClassName: ztunnel
  listeners:
  - {name: pass, port: 443, protocol: TLS, hostname: "*.example.com", tls: {mode: Passthrough}}
  - {name: own, port: 443, protocol: TLS, hostname: own.example.com, tls: {mode: Passthrough}}
  - name: end
    port: 443
    protocol: TLS
    hostname: end.example.com
    tls: {certificateRefs: [{name: end}]}
  - {name: any, port: 1443, protocol: TLS, tls: {mode: Passthrough}}
  - name: tcp-over-tls
    port: 2443
    protocol: TLS
    hostname: end.example.com
    tls: {certificateRefs: [{name: end}]}
  - {name: tcp, port: 6379, protocol: TCP}
  - {name: split, port: 6380, protocol: TCP}
  - {name: partly, port: 6381, protocol: TCP}
  - {name: guarded, port: 6382, protocol: TCP}
  - {name: empty, port: 6383, protocol: TCP}
---
kind: TLSRoute
metadata: {name: one, namespace: default, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: edge, sectionName: pass}]
  hostnames: [one.example.com, both.example.com, own.example.com, end.example.com]
  rules: [{backendRefs: [{name: tls-one, port: 443}]}]
---
kind: TLSRoute
metadata: {name: wild, namespace: default, creationTimestamp: "2026-01-02T00:00:00Z"}
spec:
  parentRefs: [{name: edge, sectionName: pass}, {name: edge, sectionName: any}]
  hostnames: ["*.sub.example.com", both.example.com]
  rules: [{backendRefs: [{name: tls-two, port: 443}]}]
---
kind: TLSRoute
metadata: {name: end, namespace: default}
spec:
  parentRefs: [{name: edge, sectionName: end}]
  hostnames: ["*.example.com"]
  rules: [{backendRefs: [{name: plain, port: 80}]}]
---
kind: TCPRoute
metadata: {name: over-tls, namespace: default}
spec:
  parentRefs: [{name: edge, sectionName: tcp-over-tls}]
  rules: [{backendRefs: [{name: plain, port: 80}]}]
---
kind: TCPRoute
metadata: {name: older, namespace: default, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: edge, port: 6379}]
  rules: [{backendRefs: [{name: plain, port: 80}]}]
---
kind: TCPRoute
metadata: {name: younger, namespace: default, creationTimestamp: "2026-01-02T00:00:00Z"}
spec:
  parentRefs: [{name: edge, port: 6379}]
  rules: [{backendRefs: [{name: other, port: 80}]}]
---
kind: TCPRoute
metadata: {name: split, namespace: default}
spec:
  parentRefs: [{name: edge, port: 6380}]
  rules:
  - backendRefs:
    - {name: plain, port: 80, weight: 3}
    - {name: other, port: 80, weight: 1}
    - {name: third, port: 80, weight: 0}
---
kind: TCPRoute
metadata: {name: partly, namespace: default}
spec:
  parentRefs: [{name: edge, port: 6381}]
  rules: [{backendRefs: [{name: plain, port: 80}, {name: missing, port: 80}]}]
"""


class Edge(NamedTuple):
    gateway: RunningGateway
    world: World
    authority: CertificateAuthority

    def port(self, number: int) -> int:
        return self.gateway.ports[number]

    def receive(self, number: int) -> str:
        """The name of the backend of a TCP connection; empty if it is closed."""
        try:
            with socket.create_connection(("127.0.0.1", self.port(number)), 5) as sock:
                return sock.recv(1024).decode()
        except ConnectionResetError:
            return ""

    def receive_tls(self, number: int, name: str) -> str:
        """The same for a connection with TLS to a name."""
        try:
            return handshake(self.port(number), name).data.decode()
        except OSError:
            return ""


def tls_server(authority: CertificateAuthority, host: str, directory: Path) -> ssl.SSLContext:
    path = directory / f"{host}.pem"
    path.write_text(authority.issue(host))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    directory = tmp_path_factory.mktemp("streams")
    world = World()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        certificates = GatewayCertificates(directory, patch)
        certificates.add("end", "end.example.com")
        for name in ("plain", "other", "third", "tls-one", "tls-two"):
            is_tls = name.startswith("tls")
            context = tls_server(certificates.authority, name, directory) if is_tls else None
            backend = stack.enter_context(StreamBackend(name, context))
            port = {443: "tls"} if is_tls else {80: "tcp"}
            world.service(name, port, [backend.port], waypoint="")
        world.apply(OBJECTS % certificates.annotation)
        with running_gateway(world.compile(GATEWAY), directory) as found:
            yield Edge(found, world, certificates.authority)


@pytest.mark.parametrize(
    ("name", "server"),
    [
        ("one.example.com", "tls-one"),
        ("both.example.com", "tls-one"),  # the older route
        ("a.sub.example.com", "tls-two"),
        ("a.b.sub.example.com", "tls-two"),
    ],
)
def test_sni_selects_the_route_and_the_backend_terminates_tls(
    edge: Edge, name: str, server: str
) -> None:
    found = handshake(edge.port(443), name)
    assert (found.subject, found.data.decode()) == (server, server)


@pytest.mark.parametrize(
    "name",
    [
        "other.example.com",  # no route
        "sub.example.com",  # *.sub.example.com does not cover it
        "own.example.com",  # belongs to another listener, which has no route
        "example.org",
        None,
    ],
)
def test_name_without_route_is_refused(edge: Edge, name: str | None) -> None:
    with pytest.raises(OSError):
        handshake(edge.port(443), name)


def test_passthrough_and_termination_share_a_port(edge: Edge) -> None:
    """The route of the passthrough listener that names the other listener's host does not apply."""
    found = handshake(edge.port(443), "end.example.com")
    assert (found.subject, found.data) == ("end.example.com", b"plain")


def test_passed_tls_is_not_encrypted_again(edge: Edge, tmp_path: Path) -> None:
    """A policy that encrypts to the backend concerns what the gateway terminates."""
    policy = """
kind: BackendTLSPolicy
metadata: {name: one, namespace: default}
spec:
  targetRefs: [{group: "", kind: Service, name: tls-one}]
  validation: {wellKnownCACertificates: System, hostname: tls-one}
"""
    config = copy.deepcopy(edge.world).apply(policy).compile(GATEWAY)
    with running_gateway(config, tmp_path) as gateway:
        assert handshake(gateway.ports[443], "one.example.com").data == b"tls-one"


def test_terminated_connection_is_encrypted_again_for_a_backend_with_a_policy(
    edge: Edge, tmp_path: Path
) -> None:
    objects = """
kind: TCPRoute
metadata: {name: over-tls, namespace: default}
spec:
  parentRefs: [{name: edge, sectionName: tcp-over-tls}]
  rules: [{backendRefs: [{name: tls-one, port: 443}]}]
---
kind: BackendTLSPolicy
metadata:
  name: one
  namespace: default
  annotations: {ztunnel.dev/ca-certificates: "%s"}
spec:
  targetRefs: [{group: "", kind: Service, name: tls-one}]
  validation:
    hostname: %s
    caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]
"""
    pem = edge.authority.pem.replace("\n", "\\n")
    for host, expected in (("tls-one", "tls-one"), ("other", "")):
        config = copy.deepcopy(edge.world).apply(objects % (pem, host)).compile(GATEWAY)
        directory = tmp_path / host
        directory.mkdir()
        with running_gateway(config, directory) as gateway:
            other = edge._replace(gateway=gateway)
            assert other.receive_tls(2443, "end.example.com") == expected


def test_terminated_connection_follows_a_tcp_route(edge: Edge) -> None:
    found = handshake(edge.port(2443), "end.example.com")
    assert (found.subject, found.data) == ("end.example.com", b"plain")
    with pytest.raises(OSError):
        handshake(edge.port(2443), "other.example.com")


def test_listener_without_hostname_takes_those_of_the_routes(edge: Edge) -> None:
    assert handshake(edge.port(1443), "a.sub.example.com").data == b"tls-two"
    with pytest.raises(OSError):
        handshake(edge.port(1443), "one.example.com")


def test_plaintext_is_refused_where_tls_is_expected(edge: Edge) -> None:
    with socket.create_connection(("127.0.0.1", edge.port(443)), 5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: one.example.com\r\n\r\n")
        with suppress(ConnectionResetError):
            assert sock.recv(1024) == b""


def test_oldest_tcp_route_gets_the_connections(edge: Edge) -> None:
    assert {edge.receive(6379) for _ in range(5)} == {"plain"}


def test_connections_follow_the_weights(edge: Edge) -> None:
    found = Counter(edge.receive(6380) for _ in range(200))
    assert set(found) == {"plain", "other"}
    assert 110 < found["plain"] < 190  # of 150 expected; 6 standard deviations


def test_share_of_an_invalid_backend_is_refused(edge: Edge) -> None:
    found = Counter(edge.receive(6381) for _ in range(100))
    assert set(found) == {"plain", ""}
    assert 20 < found[""] < 80


def test_listener_without_route_is_not_open(edge: Edge) -> None:
    assert 6383 not in edge.gateway.ports


DENY = """
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  rules: [%s]
"""


@contextmanager
def guarded(edge: Edge, directory: Path, rule: str) -> Iterator[Edge]:
    """The gateway with a DENY policy."""
    config = copy.deepcopy(edge.world).apply(DENY % rule).compile(GATEWAY)
    with running_gateway(config, directory) as gateway:
        yield edge._replace(gateway=gateway)


def test_denied_client_gets_nothing_of_a_server_that_sends_first(
    edge: Edge, tmp_path: Path
) -> None:
    with guarded(edge, tmp_path, "{from: [{source: {remoteIpBlocks: [127.0.0.0/8]}}]}") as denied:
        assert denied.receive(6379) == ""
        assert denied.receive_tls(443, "one.example.com") == ""
        assert denied.receive_tls(2443, "end.example.com") == ""
        dialed = denied.gateway.envoy.admin_get("/stats?filter=cluster.*upstream_cx_total")
        assert {line.rpartition(" ")[2] for line in dialed.splitlines()} == {"0"}


def test_client_of_another_network_is_served(edge: Edge, tmp_path: Path) -> None:
    with guarded(edge, tmp_path, "{from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]}") as other:
        assert other.receive(6379) == "plain"
        assert handshake(other.port(443), "one.example.com").data == b"tls-one"
        assert handshake(other.port(2443), "end.example.com").data == b"plain"


def test_policy_by_server_name_is_enforced(edge: Edge, tmp_path: Path) -> None:
    rule = "{when: [{key: connection.sni, values: [one.example.com]}]}"
    with guarded(edge, tmp_path, rule) as other:
        assert other.receive(6379) == "plain"
        assert handshake(other.port(443), "a.sub.example.com").data == b"tls-two"
        with pytest.raises(OSError):
            handshake(other.port(443), "one.example.com")


def test_metrics_name_the_backend(edge: Edge) -> None:
    edge.receive(6379)
    pattern = "/stats?filter=istio_tcp_connections_closed"
    wait_until(lambda: "destination_service_name.plain" in edge.gateway.envoy.admin_get(pattern))


def test_access_log_has_the_server_name(edge: Edge, tmp_path: Path) -> None:
    world = copy.deepcopy(edge.world)
    world.settings = Settings(access_log=True, access_log_encoding=AccessLogEncoding.JSON)
    with running_gateway(world.compile(GATEWAY), tmp_path) as gateway:
        handshake(gateway.ports[443], "one.example.com")
        for name in ("own.example.com", "example.org", "a\\nb.example.com"):
            with pytest.raises(OSError):
                handshake(gateway.ports[443], name)
        before = gateway.envoy.stat("cluster.default/plain|80.upstream_cx_total")
        old = client_context()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.set_ciphers("AES128-SHA:@SECLEVEL=0")
        with pytest.raises(OSError):
            handshake(gateway.ports[2443], "end.example.com", old)
        assert gateway.envoy.stat("cluster.default/plain|80.upstream_cx_total") == before
        reason = "downstream_transport_failure_reason"
        wait_until(
            lambda: any("TLS_error" in str(each.get(reason)) for each in access_log(gateway)),
            gateway.envoy.log.read_text,
            15,
        )
    found = {each["requested_server_name"]: each for each in access_log(gateway)}
    routed = found["one.example.com"]
    assert routed["destination_service"] == "tls-one.default.svc.cluster.local"
    assert routed["downstream_remote_address"].startswith("127.0.0.1:")
    assert found["own.example.com"]["response_flags"] == "NC"
    assert found["example.org"]["response_flags"] == "NR"
    assert found["example.org"]["response_code_details"] == "filter_chain_not_found"
    assert found["invalid:a_nb.example.com"]["response_flags"] == "NR"


def access_log(gateway: RunningGateway) -> list[dict[str, str]]:
    lines = gateway.envoy.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]
