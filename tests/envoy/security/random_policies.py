# SPDX-License-Identifier: Apache-2.0
"""Random AuthorizationPolicies and requests from a small vocabulary, so that many match."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.envoy.security.rig import Object, authorization_policy

IDENTITIES = [
    "",
    "spiffe://cluster.local/ns/shop/sa/cart",
    "spiffe://cluster.local/ns/shop/sa/cart-admin",
    "spiffe://cluster.local/ns/shop2/sa/cart",
    "spiffe://other.example/ns/ops/sa/robot",
]
ADDRESSES = ["10.244.0.9", "10.244.1.1", "192.0.2.77", "10.0.0.1"]
PATHS = [
    *("/", "/admin", "/admin/", "/admin/users", "/admin/users/7", "/public/index.html", "/a/b/c"),
    *("/admin/../public/x", "/%61dmin/users", "/admin%2fusers", "//admin/users", "/ADMIN/users"),
    *("/admin/users?x=/public/", "/public?/admin", "/admin\\users", "/./admin/./users/.", "/a/%2e"),
    *(
        "/a/[b]/c",
        "/a/b;c=d/e",
        "/a/%zz",
        "/a/%00",
        "/a/%c3%a9",
        "/a//b",
        "/admin/%2e%2e/a/b",
        "/~a",
    ),
    *(
        "/a/...",
        "/a/..;/b",
        "/a/b/..",
        "/a/'b'",
        '/a/"b"',
        "/a/{b}|^`<>",
        "/%41%2d%5f",
        "/a#b",
        "*",
    ),
]
METHODS = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]
HOSTS = ["web", "WEB", "web:80", "shop.example.com", "a.shop.example.com", "10.96.0.1"]
HEADERS = [
    ("x-team", "blue"),
    ("X-Team", "green"),
    ("x-team", "blue,green"),
    ("x-team", ""),
    ("x-version", "v1"),
    ("x-version", "v10"),
]
CLAIMS: list[Object | None] = [
    None,
    {},
    {"sub": "bob", "aud": "web", "azp": "app"},
    {"groups": ["dev", "ops"], "aud": ["api", "web"], "level": 3},
    {"groups": "dev", "nested": {"role": "admin", "list": ["x", "y"]}},
    {"scope": "read write", "nested": "flat", "groups": []},
]
_VALUES: dict[str, list[str]] = {
    "principals": ["*", "cluster.local/ns/shop/sa/cart", "*/sa/cart", "cluster.local/ns/shop/*"],
    "namespaces": ["*", "shop", "sho*", "*op", "*ps", "shop2", "nowhere"],
    "serviceAccounts": ["shop/cart", "cart", "ops/robot"],
    "ipBlocks": ["10.244.0.0/24", "10.244.0.9", "0.0.0.0/0", "192.0.2.0/25", "::/0"],
    "remoteIpBlocks": ["10.0.0.0/8", "192.0.2.77/32"],
    "requestPrincipals": ["*", "issuer/alice", "issuer/*", "*/bob", "iss*", "*ice", "issuer"],
    "hosts": ["*", "web", "*.example.com", "WEB", "shop*", "web:*"],
    "ports": ["80", "8080"],
    "methods": ["*", "GET", "P*", "*T", "DELETE"],
    "paths": [
        *("*", "/", "/admin", "/admin*", "/admin/*", "*/users", "*html", "/public/{*}", "/a/{**}"),
        *("/{*}/users/{*}", "/{*}", "/admin/{**}/7", "/{**}", "/a/{*}/c", "/A-_", "/a/"),
    ],
}
_SOURCES = [*list(_VALUES)[:6]]
_OPERATIONS = [*list(_VALUES)[6:]]
_CONDITIONS: dict[str, list[str]] = {
    "request.headers[X-Team]": ["*", "blue", "gr*", "*een", "blue,green"],
    "request.headers[x-version]": ["v1", "v1*"],
    "request.headers[Host]": ["web", "*.example.com"],
    "source.ip": ["10.244.0.0/16", "192.0.2.77"],
    "remote.ip": ["10.244.0.0/16"],
    "source.namespace": ["shop", "*"],
    "source.principal": ["*", "*/sa/robot"],
    "source.serviceAccount": ["shop/cart"],
    "destination.ip": ["10.96.0.0/16", "10.96.0.7"],
    "destination.port": ["80", "81"],
    "connection.sni": ["*", "web"],
    "request.auth.principal": ["issuer/alice", "*"],
    "request.auth.audiences": ["web", "a*"],
    "request.auth.presenter": ["app", "*"],
    "request.auth.claims[groups]": ["dev", "*s"],
    "request.auth.claims[nested][role]": ["admin", "*"],
    "request.auth.claims[nested][list]": ["y"],
    "request.auth.claims[nested]": ["flat"],
    "request.auth.claims[scope]": ["read", "read write"],
    "request.auth.claims[level]": ["3", "*"],
    "experimental.envoy.filters.x[y]": ["z"],
}


def random_policies(random: Random, name: str) -> list[Object]:
    """Up to four policies of one service."""
    return [_policy(random, f"{name}-{number}") for number in range(random.choice([0, 1, 1, 2, 4]))]


def random_request(random: Random) -> dict[str, Any]:
    """Arguments of a request; `claims` is None without a token."""
    return {
        "method": random.choice(METHODS),
        "path": random.choice(PATHS),
        "host": random.choice(HOSTS),
        "headers": random.sample(HEADERS, random.choice([0, 0, 1, 2])),
        "identity": random.choice(IDENTITIES),
        "address": random.choice(ADDRESSES),
        "claims": random.choice(CLAIMS),
    }


def _policy(random: Random, name: str) -> Object:
    action = random.choice(["ALLOW", "ALLOW", "DENY", "AUDIT"])
    rules = [_rule(random) for _ in range(random.choice([0, 1, 1, 2, 3]))]
    return authorization_policy(name, rules, action, dry_run=random.random() < 0.15)


def _rule(random: Random) -> Object:
    rule: Object = {}
    if random.random() < 0.5:
        rule["from"] = [
            {"source": _fields(random, _SOURCES)} for _ in range(random.choice([1, 1, 2]))
        ]
    if random.random() < 0.5:
        rule["to"] = [
            {"operation": _fields(random, _OPERATIONS)} for _ in range(random.choice([1, 1, 2]))
        ]
    if random.random() < 0.4:
        rule["when"] = [_condition(random) for _ in range(random.choice([1, 1, 2]))]
    return rule


def _fields(random: Random, names: list[str]) -> Object:
    found: Object = {}
    for name in random.sample(names, random.choice([1, 1, 2])):
        key = f"not{name[0].upper()}{name[1:]}" if random.random() < 0.3 else name
        found[key] = _some(random, _VALUES[name])
    return found


def _condition(random: Random) -> Object:
    key = random.choice(list(_CONDITIONS))
    field = "notValues" if random.random() < 0.3 else "values"
    return {"key": key, field: _some(random, _CONDITIONS[key])}


def _some(random: Random, values: list[str]) -> list[str]:
    return random.sample(values, min(len(values), random.choice([1, 1, 2, 3])))
