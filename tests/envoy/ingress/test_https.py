# SPDX-License-Identifier: Apache-2.0
"""Requests over TLS whose host belongs to another listener, or to none, and HTTP/2."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ingress.certificates import GatewayCertificates
from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.h2_client import H2Client
from tests.support.waypoint.tls_client import client_context
from tests.support.waypoint.world import World

OBJECTS = """
kind: Gateway
metadata:
  name: edge
  namespace: default
  annotations: {ztunnel.dev/gateway-certificates: '%s'}
spec:
  gatewayClassName: ztunnel
  listeners:
  - name: shop
    port: 443
    protocol: HTTPS
    hostname: shop.example.com
    tls: {certificateRefs: [{name: any}]}
  - name: wild
    port: 443
    protocol: HTTPS
    hostname: "*.example.com"
    tls: {certificateRefs: [{name: any}]}
  - name: absent
    port: 443
    protocol: HTTPS
    hostname: "absent.example.net"
    tls: {certificateRefs: [{name: absent}]}
  - {name: all, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: any}]}}
  - name: shop-8443
    port: 8443
    protocol: HTTPS
    hostname: shop.example.com
    tls: {certificateRefs: [{name: any}]}
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  rules:
  - backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example.com}}]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    directory: Path = tmp_path_factory.mktemp("https")
    with pytest.MonkeyPatch.context() as patch, Backend("web") as web:
        certificates = GatewayCertificates(directory, patch)
        certificates.add("any", "*.example.com")
        world = World()
        world.service("web", backends=[web.port], waypoint="")
        world.apply(OBJECTS % certificates.annotation)
        with running_gateway(world.compile("default/edge"), directory) as found:
            yield found


@pytest.mark.parametrize(
    ("port", "server_name", "host", "expected"),
    [
        (443, "shop.example.com", "shop.example.com", 200),
        (443, "shop.example.com", "shop.example.com:443", 200),
        (443, "shop.example.com", "a.example.com", 421),  # of the listener `wild`
        (443, "shop.example.com", "example.org", 404),  # of no listener
        (443, "a.example.com", "b.example.com", 200),
        (443, "a.example.com", "shop.example.com", 421),
        (443, "a.example.com", "SHOP.example.com:8443", 421),
        (443, "a.example.com", "example.com", 404),
        (8443, "a.example.com", "example.org", 200),
        (8443, "a.example.com", "shop.example.com", 421),
        (8443, "shop.example.com", "example.org", 421),  # of the listener for all names
    ],
)
def test_host_of_another_listener_is_misdirected(
    gateway: RunningGateway, port: int, server_name: str, host: str, expected: int
) -> None:
    tls = client_context()
    answer = fetch(gateway.ports[port], host, tls=tls, server_name=server_name)
    assert answer.status == expected


def test_unknown_server_name_and_invalid_certificate_are_closed(gateway: RunningGateway) -> None:
    for name in ("example.org", "absent.example.net"):
        with pytest.raises(OSError):
            fetch(gateway.ports[443], name, tls=client_context())


def test_plain_http_on_the_port_is_closed(gateway: RunningGateway) -> None:
    with pytest.raises((OSError, ValueError)):
        fetch(gateway.ports[443], "shop.example.com")


def test_scheme_and_port_are_those_of_the_listener(gateway: RunningGateway) -> None:
    tls = client_context()
    host = "shop.example.com"
    headers = fetch(gateway.ports[443], host, tls=tls).received["headers"]
    assert headers["x-forwarded-proto"] == "https"
    for port, expected in ((443, ""), (8443, ":8443")):
        answer = fetch(gateway.ports[port], host, "/moved", tls=tls)
        assert answer.headers["location"] == f"https://new.example.com{expected}/moved"


def test_client_that_offers_http2_gets_it(gateway: RunningGateway) -> None:
    tls = client_context()
    tls.set_alpn_protocols(["h2", "http/1.1"])
    raw = socket.create_connection(("127.0.0.1", gateway.ports[443]), 10)
    with tls.wrap_socket(raw, server_hostname="shop.example.com") as sock:
        assert sock.selected_alpn_protocol() == "h2"
        client = H2Client(sock)
        answer = client.request("GET", "/", {":scheme": "https", ":authority": "shop.example.com"})
        assert answer.headers[":status"] == "200"
        # a client may reuse the connection for a name that the certificate covers
        answer = client.request("GET", "/", {":scheme": "https", ":authority": "a.example.com"})
        assert answer.headers[":status"] == "421"
