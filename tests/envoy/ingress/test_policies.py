# SPDX-License-Identifier: Apache-2.0
"""AuthorizationPolicy and RequestAuthentication at ingress gateways, with a real Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.envoy.security.tokens import Issuer
from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import running_gateway
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.world import World
from ztunnel.mesh.headers.proxy_protocol import encode_proxy_header
from ztunnel.mesh.model import SocketAddress

GATEWAY = "default/edge"
HOST = "shop.example.com"
OBJECTS = """
kind: Gateway
metadata: {name: edge, namespace: default, annotations: {%s}}
spec:
  gatewayClassName: ztunnel
  infrastructure: {labels: {team: edge}}
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"""
TRUSTED = 'proxy.istio.io/config: "{gatewayTopology: {numTrustedProxies: 1}}"'
TARGET = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}
BY_TARGET = {"targetRefs": [TARGET]}


def policy(spec: dict[str, Any], namespace: str = "default", name: str = "p") -> dict[str, Any]:
    kind = "RequestAuthentication" if "jwtRules" in spec else "AuthorizationPolicy"
    return {"kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


class Edge:
    def __init__(self, port: int) -> None:
        self.port = port

    def status(self, path: str = "/", host: str = HOST, **headers: str) -> int:
        found = {name.replace("_", "-"): value for name, value in headers.items()}
        return fetch(self.port, host, path, headers=found).status


@contextmanager
def edge(directory: Path, *objects: dict[str, Any], annotations: str = "") -> Iterator[Edge]:
    world = World()
    with Backend("web") as backend:
        world.service("web", backends=[backend.port], waypoint="")
        world.apply(OBJECTS % annotations)
        for each in objects:
            world.add(each)
        with running_gateway(world.compile(GATEWAY), directory) as found:
            yield Edge(found.ports[80])


DENY_ADMIN = {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}]}]}


@pytest.mark.parametrize(
    ("spec", "namespace", "expected"),
    [
        (BY_TARGET, "default", 403),
        (BY_TARGET, "other", 200),  # a Gateway of another namespace
        ({"selector": {"matchLabels": {"team": "edge"}}}, "default", 403),
        ({"selector": {"matchLabels": {"team": "edge"}}}, "istio-system", 403),
        ({"selector": {"matchLabels": {"team": "edge"}}}, "other", 200),
        (
            {"selector": {"matchLabels": {"gateway.networking.k8s.io/gateway-name": "edge"}}},
            "default",
            403,
        ),
        ({"selector": {"matchLabels": {"team": "web"}}}, "default", 200),
        ({}, "default", 403),  # the whole namespace
        ({}, "istio-system", 403),  # the mesh
        (
            {
                "targetRefs": [
                    {
                        "group": "gateway.networking.k8s.io",
                        "kind": "GatewayClass",
                        "name": "ztunnel",
                    }
                ]
            },
            "istio-system",
            403,
        ),
        ({"selector": {"matchLabels": "invalid"}}, "default", 403),
    ],
)
def test_policy_applies_to_the_gateways_that_it_selects(
    tmp_path: Path, spec: dict[str, Any], namespace: str, expected: int
) -> None:
    with edge(tmp_path, policy({**spec, **DENY_ADMIN}, namespace)) as found:
        assert found.status("/admin/x") == expected
        if "invalid" not in str(spec):
            assert found.status("/") == 200


def test_client_without_identity_matches_no_principal(tmp_path: Path) -> None:
    rules = [{"from": [{"source": {"principals": ["*"]}}]}]
    with edge(tmp_path, policy({**BY_TARGET, "action": "ALLOW", "rules": rules})) as found:
        assert found.status() == 403


@pytest.mark.parametrize("host", ["shop.example.com", "SHOP.example.com", "shop.example.com:8443"])
def test_denied_host_is_denied_with_any_port(tmp_path: Path, host: str) -> None:
    rules = [{"to": [{"operation": {"hosts": [HOST]}}]}]
    with edge(tmp_path, policy({**BY_TARGET, "action": "DENY", "rules": rules})) as found:
        assert found.status(host=host) == 403
        assert found.status(host="other.example.com:80") == 200


def by_address(field: str, *networks: str) -> dict[str, Any]:
    rules = [{"from": [{"source": {field: list(networks)}}]}]
    return policy({**BY_TARGET, "action": "ALLOW", "rules": rules})


def test_forged_forwarded_address_is_not_trusted(tmp_path: Path) -> None:
    with edge(tmp_path, by_address("remoteIpBlocks", "203.0.113.0/24")) as found:
        assert found.status(x_forwarded_for="203.0.113.7") == 403
    with edge(tmp_path, by_address("remoteIpBlocks", "127.0.0.1")) as found:
        assert found.status(x_forwarded_for="203.0.113.7") == 200


def test_trusted_proxy_names_the_client(tmp_path: Path) -> None:
    allowed = by_address("remoteIpBlocks", "203.0.113.0/24")
    with edge(tmp_path, allowed, annotations=TRUSTED) as found:
        assert found.status(x_forwarded_for="203.0.113.7") == 200
        assert found.status(x_forwarded_for="203.0.113.7, 198.51.100.1") == 403
        assert found.status() == 403
    with edge(tmp_path, by_address("ipBlocks", "203.0.113.0/24"), annotations=TRUSTED) as found:
        assert found.status(x_forwarded_for="203.0.113.7") == 403  # the connection's own address


def test_proxy_protocol_names_the_client(tmp_path: Path) -> None:
    annotation = 'proxy.istio.io/config: "{gatewayTopology: {proxyProtocol: {}}}"'
    allowed = by_address("remoteIpBlocks", "203.0.113.0/24")
    with edge(tmp_path, allowed, annotations=annotation) as found:
        for source, expected in (("203.0.113.7", 200), ("198.51.100.1", 403)):
            v2 = encode_proxy_header(SocketAddress(source, 4000), SocketAddress("10.0.0.1", 80), ())
            v1 = f"PROXY TCP4 {source} 10.0.0.1 4000 80\r\n".encode()
            for header in (v1, v2):
                assert fetch(found.port, HOST, before=header).status == expected
        with pytest.raises(OSError):
            fetch(found.port, HOST)  # without the header


def test_token_is_required_and_verified(tmp_path: Path) -> None:
    issuer = Issuer("issuer.example.com")
    authentication = policy(
        {**BY_TARGET, "jwtRules": [{"issuer": issuer.name, "jwks": issuer.jwks}]}
    )
    rules = [{"from": [{"source": {"requestPrincipals": [f"{issuer.name}/alice"]}}]}]
    required = policy({"selector": {"matchLabels": {"team": "edge"}}, "rules": rules}, name="q")
    with edge(tmp_path, authentication, required) as found:
        assert found.status() == 403
        assert found.status(authorization=issuer.bearer()[1]) == 200
        assert found.status(authorization=issuer.bearer(sub="bob")[1]) == 403
        assert found.status(authorization=Issuer(issuer.name).bearer()[1]) == 401


def test_dual_stack_gateway_compares_addresses_of_both_families(tmp_path: Path) -> None:
    world = World()
    with Backend("web") as backend:
        world.service("web", backends=[backend.port], waypoint="")
        pod = world.pod("edge-1", ("10.0.0.1", "fd00::1"))
        world.mesh.put(msgspec.structs.replace(pod, gateway=GATEWAY))
        world.apply(OBJECTS % "").add(by_address("ipBlocks", "127.0.0.1", "fd00::/8"))
        with running_gateway(world.compile(GATEWAY), tmp_path) as found:
            assert fetch(found.ports[80], HOST).status == 200
            assert fetch(found.ports[80], HOST, address="::1").status == 403
