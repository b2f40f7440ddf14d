# SPDX-License-Identifier: Apache-2.0
"""A real Envoy authorizes TCP connections at a waypoint, and the evaluator agrees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.envoy.security.rig import (
    CART,
    Object,
    Rig,
    authorization_policy,
    request_authentication,
    rule,
)
from ztunnel.l7.inputs import Protocol
from ztunnel.l7.problems import Severity
from ztunnel.l7.security.request import Connection
from ztunnel.l7.security.simulate import simulate
from ztunnel.mesh.model import SocketAddress

OTHER = "spiffe://cluster.local/ns/other/sa/other"
CART_ONLY = {"principals": [CART.removeprefix("spiffe://")]}
POLICIES: dict[str, list[Object]] = {
    "open": [],
    "cart-only": [authorization_policy("cart-only", [rule(CART_ONLY)])],
    "deny-cart": [authorization_policy("deny-cart", [rule(CART_ONLY)], "DENY")],
    "allow-http": [authorization_policy("allow-http", [rule(CART_ONLY, {"methods": ["GET"]})])],
    "allow-either": [
        authorization_policy("either", [rule(None, {"methods": ["*"]}), rule(CART_ONLY)])
    ],
    "deny-http": [
        authorization_policy("deny-http", [rule(CART_ONLY, {"paths": ["/never"]})], "DENY")
    ],
    "not-http": [authorization_policy("not-http", [rule({"notRequestPrincipals": ["*"]})])],
    "port": [authorization_policy("port", [rule(None, {"ports": ["5432"]})])],
    "other-port": [authorization_policy("other-port", [rule(None, {"ports": ["80"]})])],
    "networks": [authorization_policy("networks", [rule({"ipBlocks": ["10.244.0.9/32"]})])],
    "dry": [authorization_policy("dry", [{}], "DENY", dry_run=True)],
    "invalid": [authorization_policy("invalid", [{"x": 1}], "DENY")],
}
ALLOWED = {
    "open": {CART, OTHER, ""},
    "cart-only": {CART},
    "deny-cart": {OTHER, ""},
    "allow-http": set(),
    "allow-either": {CART},
    "deny-http": {OTHER, ""},
    "not-http": set(),
    "port": {CART, OTHER, ""},
    "other-port": set(),
    "networks": {CART, OTHER, ""},
    "dry": {CART, OTHER, ""},
    "invalid": set(),
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig()
    for name, objects in POLICIES.items():
        rig.add(name, objects, protocol="tcp", port=5432)
    with rig.run(tmp_path_factory.mktemp("tcp")) as running:
        yield running


def is_allowed(rig: Rig, service: str, identity: str) -> bool:
    with rig.connect(service, identity) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
        try:
            return sock.recv(100).startswith(b"HTTP/1.1 200")
        except ConnectionError:
            return False


@pytest.mark.parametrize("identity", [CART, OTHER, ""])
@pytest.mark.parametrize("service", list(POLICIES))
def test_connection_is_authorized(rig: Rig, service: str, identity: str) -> None:
    expected = identity in ALLOWED[service]
    assert is_allowed(rig, service, identity) is expected
    ip, port = rig.services[service]
    decision = simulate(
        rig.world.inputs,
        rig.destination(service, Protocol.TCP),
        Connection(identity=identity, source_ip="10.244.0.9", destination=SocketAddress(ip, port)),
        None,
    )
    assert decision.allowed is expected


def test_fields_about_requests_are_reported() -> None:
    rig = Rig()
    rig.add(
        "allow",
        [authorization_policy("allow", [rule(CART_ONLY, {"hosts": ["a"]})])],
        protocol="tcp",
    )
    rig.add(
        "deny",
        [authorization_policy("deny", [rule(None, {"paths": ["/a"]})], "DENY")],
        protocol="tcp",
    )
    rig.add("tokens", [request_authentication("tokens")], protocol="tcp")
    found = {problem.name: problem for problem in rig.world.compile().problems}
    assert found["allow"].message == "TCP connections have no hosts: the rule allows nothing there"
    assert found["deny"].message == "TCP connections have no paths: it applies without them"
    assert found["tokens"].severity is Severity.IGNORED
