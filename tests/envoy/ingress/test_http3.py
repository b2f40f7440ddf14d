# SPDX-License-Identifier: Apache-2.0
"""HTTP/3 at HTTPS listeners of a Gateway that enables it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.certificate_authority import CertificateAuthority
from tests.support.ingress.certificates import GatewayCertificates
from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.ingress.http3_client import fetch_http3
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.tls_client import client_context
from tests.support.waypoint.world import World

OBJECTS = """
kind: Gateway
metadata:
  name: edge
  namespace: default
  annotations: {ztunnel.dev/http3: "true", ztunnel.dev/gateway-certificates: '%s'}
spec:
  gatewayClassName: ztunnel
  tls:
    frontend:
      default: {}
      perPort:
      - port: 8443
        tls: {validation: {caCertificateRefs: [{group: "", kind: ConfigMap, name: clients}]}}
  listeners:
  - {name: shop, port: 443, protocol: HTTPS, hostname: shop.example.com, tls: &tls
      {certificateRefs: [{name: web}]}}
  - {name: wild, port: 443, protocol: HTTPS, hostname: "*.example.com", tls: *tls}
  - {name: strict, port: 8443, protocol: HTTPS, tls: *tls}
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  rules:
  - backendRefs: [{name: web, port: 80}]
---
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  action: DENY
  rules:
  - to: [{operation: {paths: [/admin]}}]
  - from: [{source: {remoteIpBlocks: [198.51.100.0/24]}}]
"""


@contextmanager
def edge(directory: Path) -> Iterator[tuple[RunningGateway, World]]:
    with pytest.MonkeyPatch.context() as patch, Backend("web") as web:
        certificates = GatewayCertificates(directory, patch)
        certificates.add("web", "*.example.com")
        certificates.add_authorities(CertificateAuthority("clients").pem, "clients")
        world = World()
        world.service("web", backends=[web.port], waypoint="")
        world.apply(OBJECTS % certificates.annotation)
        with running_gateway(world.compile("default/edge"), directory) as found:
            yield found, world


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with edge(tmp_path_factory.mktemp("http3")) as (found, _):
        yield found


def test_request_over_http3_reaches_the_backend(gateway: RunningGateway) -> None:
    headers, body = fetch_http3(gateway.ports[443], "shop.example.com", "/a")
    assert headers[":status"] == "200"
    received = json.loads(body)
    assert (received["backend"], received["path"]) == ("web", "/a")
    assert received["headers"]["x-forwarded-proto"] == "https"


def test_other_versions_announce_http3(gateway: RunningGateway) -> None:
    answer = fetch(gateway.ports[443], "shop.example.com", tls=client_context())
    assert answer.headers["alt-svc"] == 'h3=":443"; ma=86400'


@pytest.mark.parametrize(
    ("server_name", "host", "path", "status"),
    [
        ("shop.example.com", "shop.example.com", "/admin", "403"),
        ("shop.example.com", "a.example.com", "/", "421"),
        ("a.example.com", "b.example.com", "/", "200"),
        ("a.example.com", "example.org", "/", "404"),
    ],
)
def test_policies_and_listeners_apply_to_http3(
    gateway: RunningGateway, server_name: str, host: str, path: str, status: str
) -> None:
    headers, _ = fetch_http3(gateway.ports[443], host, path, server_name)
    assert headers[":status"] == status


def test_listener_that_validates_clients_has_no_http3(gateway: RunningGateway) -> None:
    with pytest.raises((ConnectionError, TimeoutError)):
        fetch_http3(gateway.ports[8443], "shop.example.com")


def test_unknown_server_name_is_closed(gateway: RunningGateway) -> None:
    with pytest.raises((ConnectionError, TimeoutError)):
        fetch_http3(gateway.ports[443], "example.org", server_name="example.org")
