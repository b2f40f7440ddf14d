# SPDX-License-Identifier: Apache-2.0
"""HTTPS listeners of ingress gateways: certificates, SNI, versions, client certificates."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.certificate_authority import CertificateAuthority
from tests.support.ingress.certificates import GatewayCertificates
from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.tls_client import client_context, handshake
from tests.support.waypoint.world import World

GATEWAY = "default/edge"
OBJECTS = """
kind: Gateway
metadata:
  name: edge
  namespace: default
  annotations: {ztunnel.dev/gateway-certificates: '%s'}
spec:
  gatewayClassName: ztunnel
  tls:
    frontend:
      default: {}
      perPort:
      - port: 8443
        tls: {validation: {caCertificateRefs: [{group: "", kind: ConfigMap, name: clients}]}}
      - port: 9443
        tls:
          validation:
            mode: AllowInsecureFallback
            caCertificateRefs: [{group: "", kind: ConfigMap, name: clients}]
      - port: 7443
        tls: {validation: {caCertificateRefs: [{group: "", kind: ConfigMap, name: absent}]}}
  listeners:
  - name: web
    port: 443
    protocol: HTTPS
    hostname: web.example.com
    tls: {certificateRefs: [{name: web}]}
  - name: wild
    port: 443
    protocol: HTTPS
    hostname: "*.example.com"
    tls: {certificateRefs: [{name: wild}, {name: extra}, {name: absent}]}
  - name: absent
    port: 443
    protocol: HTTPS
    hostname: absent.example.org
    tls: {certificateRefs: [{name: absent}]}
  - name: unusable
    port: 443
    protocol: HTTPS
    hostname: unusable.example.com
    tls: {certificateRefs: [{name: absent}]}
  - {name: any, port: 1443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}
  - {name: strict, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}
  - {name: fallback, port: 9443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}
  - {name: closed, port: 7443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  rules:
  - backendRefs: [{name: web, port: 80}]
"""


class Edge(NamedTuple):
    gateway: RunningGateway
    certificates: GatewayCertificates
    clients: CertificateAuthority
    directory: Path

    def port(self, number: int) -> int:
        return self.gateway.ports[number]

    def client(self, authority: CertificateAuthority) -> ssl.SSLContext:
        """A client with a certificate."""
        path = self.directory / "client.pem"
        path.write_text(authority.issue("client"))
        return client_context(certificate=path)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    directory = tmp_path_factory.mktemp("tls")
    clients = CertificateAuthority("clients")
    with pytest.MonkeyPatch.context() as patch, Backend("web") as web:
        certificates = GatewayCertificates(directory, patch)
        certificates.add("web", "web.example.com")
        certificates.add("wild", "*.example.com")
        certificates.add("extra", "extra.example.com")
        certificates.add_authorities(clients.pem, "clients")
        world = World()
        world.service("web", backends=[web.port], waypoint="")
        world.apply(OBJECTS % certificates.annotation)
        with running_gateway(world.compile(GATEWAY), directory) as found:
            yield Edge(found, certificates, clients, directory)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web.example.com", "web.example.com"),
        ("WEB.example.com", "web.example.com"),
        ("a.example.com", "*.example.com"),
        ("a.b.example.com", "*.example.com"),
        ("extra.example.com", "extra.example.com"),  # of two certificates of the listener
    ],
)
def test_sni_selects_the_certificate(edge: Edge, name: str, expected: str) -> None:
    assert handshake(edge.port(443), name, receive=0).subject == expected


@pytest.mark.parametrize(
    "name",
    [
        "example.com",
        "example.org",
        "absent.example.org",
        "unusable.example.com",  # has no certificate, and does not fall to *.example.com
        None,
    ],
)
def test_names_without_listener_are_refused(edge: Edge, name: str | None) -> None:
    with pytest.raises(OSError):
        handshake(edge.port(443), name, receive=0)


def test_listener_without_hostname_accepts_clients_without_sni(edge: Edge) -> None:
    assert handshake(edge.port(1443), None, receive=0).subject == "web.example.com"
    assert handshake(edge.port(1443), "other.example.org", receive=0).subject == "web.example.com"


def test_requests_are_routed(edge: Edge) -> None:
    context = client_context(authority=edge.certificates.authority.pem)
    answer = fetch(edge.port(443), "web.example.com", tls=context)
    assert answer.backend == "web"
    assert answer.received["headers"]["x-forwarded-proto"] == "https"


def test_host_of_a_listener_without_certificate_is_not_served_by_another(edge: Edge) -> None:
    answer = fetch(
        edge.port(443),
        "unusable.example.com",
        tls=client_context(),
        server_name="a.example.com",
    )
    assert answer.status == 421


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), ((), None), (("x",), None)],
)
def test_alpn_offers_http2_first(edge: Edge, offered: tuple[str, ...], chosen: str | None) -> None:
    found = handshake(edge.port(443), "web.example.com", client_context(offered), receive=0)
    assert found.alpn == chosen


@pytest.mark.parametrize(
    ("version", "name"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
def test_tls_of_today_is_accepted(edge: Edge, version: ssl.TLSVersion, name: str) -> None:
    context = client_context()
    context.minimum_version = context.maximum_version = version
    assert handshake(edge.port(443), "web.example.com", context, receive=0).version == name


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_1_1_is_refused(edge: Edge) -> None:
    context = client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|alert"):
        handshake(edge.port(443), "web.example.com", context)


@pytest.mark.parametrize("cipher", ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "AES128-GCM-SHA256"])
def test_ciphers_without_forward_secrecy_or_aead_are_refused(edge: Edge, cipher: str) -> None:
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        handshake(edge.port(443), "web.example.com", context)


def test_plaintext_is_refused(edge: Edge) -> None:
    with pytest.raises(OSError):
        fetch(edge.port(443), "web.example.com")
    with socket.create_connection(("127.0.0.1", edge.port(1443)), 5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: web.example.com\r\n\r\n")
        assert b"200" not in sock.recv(1024)


def test_valid_client_certificate_is_required(edge: Edge) -> None:
    port = edge.port(8443)
    answer = fetch(port, "web.example.com", tls=edge.client(edge.clients))
    assert answer.backend == "web"
    for context in (client_context(), edge.client(CertificateAuthority("others"))):
        with pytest.raises(OSError):  # the alert, or a reset, after the client's last message
            fetch(port, "web.example.com", tls=context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("other", [1443, 9443])
def test_session_of_another_listener_does_not_replace_the_client_certificate(
    edge: Edge, version: ssl.TLSVersion, other: int
) -> None:
    context = client_context()
    context.minimum_version = context.maximum_version = version
    session = exchange(edge.port(other), context, None)
    assert exchange(edge.port(other), context, session)  # it can be resumed where it is from
    with pytest.raises(OSError):
        exchange(edge.port(8443), context, session)


def exchange(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> ssl.SSLSession | None:
    """Send a request, with a session to resume; returns the session of the connection."""
    request = b"GET / HTTP/1.1\r\nhost: web.example.com\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="web.example.com", session=session) as tls,
    ):
        tls.sendall(request)
        if not tls.recv(4096).startswith(b"HTTP/1.1 200"):
            raise ConnectionResetError
        return tls.session if tls.session_reused or session is None else None


def test_insecure_fallback_admits_clients_without_valid_certificate(edge: Edge) -> None:
    others = edge.client(CertificateAuthority("others"))
    for context in (edge.client(edge.clients), client_context(), others):
        assert fetch(edge.port(9443), "web.example.com", tls=context).backend == "web"


def test_port_without_valid_authorities_is_closed(edge: Edge) -> None:
    assert 7443 not in edge.gateway.ports
