# SPDX-License-Identifier: Apache-2.0
"""A real Envoy enforces AuthorizationPolicies of a waypoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.envoy.security.rig import CART, Object, Rig, authorization_policy, rule, target

CATALOG = "spiffe://cluster.local/ns/catalog/sa/web"
POLICIES: dict[str, list[Object]] = {
    "open": [],
    "get-only": [authorization_policy("get-only", [rule(None, {"methods": ["GET", "HEAD"]})])],
    "cart-only": [
        authorization_policy("cart", [rule({"principals": ["cluster.local/ns/shop/sa/cart"]})])
    ],
    "any-identity": [authorization_policy("any-identity", [rule({"principals": ["*"]})])],
    "not-cart": [
        authorization_policy("not-cart", [rule({"notPrincipals": ["*/ns/shop/sa/cart"]})])
    ],
    "deny-shop": [authorization_policy("deny-shop", [rule({"namespaces": ["sho*"]})], "DENY")],
    "account": [authorization_policy("account", [rule({"serviceAccounts": ["shop/cart"]})])],
    "deny-admin": [
        authorization_policy("deny-admin", [rule(None, {"paths": ["/admin/{*}"]})], "DENY")
    ],
    "tree": [authorization_policy("tree", [rule(None, {"paths": ["/a/{*}/b/{**}"]})])],
    "nothing": [authorization_policy("nothing", [])],
    "deny-all": [authorization_policy("deny-all", [{}], "DENY")],
    "networks": [authorization_policy("net", [rule({"ipBlocks": ["10.244.0.0/24"]})])],
    "remote": [authorization_policy("remote", [rule({"remoteIpBlocks": ["10.244.0.0/24"]})])],
    "port": [authorization_policy("port", [rule(None, {"ports": ["81"]})])],
    "host": [authorization_policy("host", [rule(None, {"hosts": ["*.shop.example"]})])],
    "header": [
        authorization_policy(
            "header", [rule(None, None, {"key": "request.headers[X-Team]", "values": ["a*"]})]
        )
    ],
    "both": [
        authorization_policy("z-allow", [rule(None, {"paths": ["/x*"]})]),
        authorization_policy("a-deny", [rule(None, {"paths": ["/x/secret*"]})], "DENY"),
    ],
    "dry": [authorization_policy("dry", [{}], "DENY", dry_run=True)],
    "audit": [authorization_policy("audit", [{}], "AUDIT")],
    "invalid-allow": [authorization_policy("bad-allow", [{"form": []}])],
    "invalid-deny": [authorization_policy("bad-deny", [{"form": []}], "DENY")],
    "unsupported-allow": [
        authorization_policy(
            "lua-allow",
            [rule(None, None, {"key": "experimental.envoy.filters.a[b]", "values": ["c"]})],
        )
    ],
    "unsupported-deny": [
        authorization_policy(
            "lua-deny",
            [
                rule(
                    None,
                    {"methods": ["POST"]},
                    {"key": "experimental.envoy.filters.a[b]", "values": ["c"]},
                )
            ],
            "DENY",
        )
    ],
    "custom": [
        authorization_policy(
            "custom", [rule(None, {"paths": ["/c*"]})], "CUSTOM", provider={"name": "missing"}
        )
    ],
    "gateway": [
        authorization_policy(
            "gateway",
            [rule({"namespaces": ["evil"]})],
            "DENY",
            target=target("Gateway", "waypoint"),
        )
    ],
    "class": [
        authorization_policy(
            "class",
            [rule({"namespaces": ["worse"]})],
            "DENY",
            target=target("GatewayClass", "istio-waypoint"),
            namespace="istio-system",
        )
    ],
    "other-class": [
        authorization_policy(
            "other-class",
            [{}],
            "DENY",
            target=target("GatewayClass", "other"),
            namespace="istio-system",
        )
    ],
    "selector": [
        authorization_policy("selector", [], selector={"matchLabels": {"app": "x"}}, targetRefs=[])
    ],
    "other-namespace": [
        authorization_policy("foreign", [{}], "DENY", namespace="other"),
    ],
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig()
    for name, objects in POLICIES.items():
        rig.add(name, objects)
    directory: Path = tmp_path_factory.mktemp("rbac")
    with rig.run(directory) as running:
        yield running


@pytest.mark.parametrize(
    ("service", "method", "path", "status"),
    [
        ("open", "GET", "/", 200),
        ("get-only", "GET", "/", 200),
        ("get-only", "POST", "/", 403),
        ("deny-admin", "GET", "/admin/x", 403),
        ("deny-admin", "GET", "/admin/x?y=/z", 403),
        ("deny-admin", "GET", "/admin/[x]", 403),
        ("deny-admin", "GET", "/a/../admin/x", 403),
        ("deny-admin", "GET", "/%61dmin/x", 403),
        ("deny-admin", "GET", "/admin\\x", 403),
        ("deny-admin", "GET", "/admin/x/y", 200),
        ("deny-admin", "GET", "/admin", 200),
        ("tree", "GET", "/a/1/b/", 200),
        ("tree", "GET", "/a/1/b/2/3", 200),
        ("tree", "GET", "/a/1/2/b/3", 403),
        ("nothing", "GET", "/", 403),
        ("deny-all", "GET", "/", 403),
        ("port", "GET", "/", 403),
        ("both", "GET", "/x/public", 200),
        ("both", "GET", "/x/secret", 403),
        ("both", "GET", "/y", 403),
        ("dry", "GET", "/", 200),
        ("audit", "GET", "/", 200),
        ("invalid-allow", "GET", "/", 403),
        ("invalid-deny", "GET", "/", 403),
        ("unsupported-allow", "GET", "/", 403),
        ("unsupported-deny", "POST", "/", 403),
        ("unsupported-deny", "GET", "/", 200),
        ("custom", "GET", "/c", 403),
        ("custom", "GET", "/d", 200),
        ("selector", "GET", "/", 200),
        ("other-class", "GET", "/", 200),
        ("other-namespace", "GET", "/", 200),
    ],
)
def test_operation_is_authorized(
    rig: Rig, service: str, method: str, path: str, status: int
) -> None:
    assert rig.call(service, method, path).status == status


@pytest.mark.parametrize(
    ("service", "identity", "status"),
    [
        ("cart-only", CART, 200),
        ("cart-only", CATALOG, 403),
        ("cart-only", "", 403),
        ("any-identity", CATALOG, 200),
        ("any-identity", "", 403),
        ("not-cart", CART, 403),
        ("not-cart", CATALOG, 200),
        ("not-cart", "", 200),
        ("deny-shop", CART, 403),
        ("deny-shop", CATALOG, 200),
        ("deny-shop", "", 200),
        ("account", CART, 200),
        ("account", CART + "2", 403),
        ("open", "spiffe://cluster.local/ns/evil/sa/x", 403),
        ("open", "spiffe://cluster.local/ns/worse/sa/x", 403),
    ],
)
def test_client_is_authorized_by_its_identity(
    rig: Rig, service: str, identity: str, status: int
) -> None:
    assert rig.call(service, identity=identity).status == status


@pytest.mark.parametrize("service", ["networks", "remote"])
def test_client_address_is_not_taken_from_a_header(rig: Rig, service: str) -> None:
    outside = ("192.0.2.1", 1234)
    headers = (("host", "web"), ("x-forwarded-for", "10.244.0.9"))
    assert rig.call(service).status == 200
    assert rig.call(service, headers=headers, source=outside).status == 403


def test_ipv4_client_of_an_ipv6_address_is_matched(rig: Rig) -> None:
    assert rig.call("networks-v6").status == 200
    assert rig.call("networks-v6", source=("192.0.2.1", 1234)).status == 403


def test_host_is_matched_without_case(rig: Rig) -> None:
    assert rig.call("host", headers=[("host", "A.Shop.EXAMPLE")]).status == 200
    assert rig.call("host", headers=[("host", "shop.example")]).status == 403


def test_any_value_of_a_header_may_match(rig: Rig) -> None:
    host = ("host", "web")
    assert rig.call("header", headers=[host, ("x-team", "b"), ("x-team", "ab")]).status == 200
    assert rig.call("header", headers=[host, ("x-team", "b")]).status == 403
    assert rig.call("header", headers=[host]).status == 403


def test_denial_has_the_body_of_istio(rig: Rig) -> None:
    assert rig.call("deny-all").body == b"RBAC: access denied"
