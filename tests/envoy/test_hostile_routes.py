# SPDX-License-Identifier: Apache-2.0
"""Envoy accepts what is compiled from any route, so that a route can only break itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.waypoint.envoy import validate
from tests.support.waypoint.world import World

TEXTS = [
    *("", "/", "//", "/a", "/a/", "/a b", "/a?b", "/a#b", "/%zz", "/ä", "/a\\1", "/a\n", "/\0"),
    *(
        "a",
        "*",
        "**",
        "a b",
        "a\r\nb: c",
        "\t",
        "%REQ(x)%",
        "100%",
        "%",
        "\\",
        "{a}",
        "ä",
        "\U0001f600",
    ),
    *(
        "(",
        "[",
        "a{1001}",
        "(a{100}){100}",
        "(?=a)",
        "(?P<n>a)(?P=n)",
        ".*",
        "\\pN+",
        "\\Q(\\E",
        "$",
        "^",
    ),
    *("x" * 300, "/" + "x" * 3000, "x" * 20000, "(" * 500, "[[:alpha:]]", "(?i)a"),
    *(
        "host",
        "Host",
        ":path",
        "content-length",
        "x-a",
        "Connection",
        "te",
        "x_a",
        "a,b",
        "a;b",
        "a=b",
    ),
    *("0s", "0ms", "1ms", "99999h", "99999h99999h99999h99999h", "1.5s", "-1s", "1", "5s", "1h30m"),
    *(
        "https://a.b",
        "https://*.b",
        "http://",
        "https://a\r\nx",
        "null",
        "a.example",
        "*.example",
        "A",
    ),
    *(
        "Exact",
        "PathPrefix",
        "RegularExpression",
        "ReplaceFullPath",
        "ReplacePrefixMatch",
        "GET",
        "get",
    ),
    *("Cookie", "Header", "Permanent", "Session", "http", "https", "Service", "Hostname"),
]
NUMBERS = [
    -1,
    0,
    1,
    2,
    80,
    99,
    100,
    302,
    308,
    404,
    503,
    599,
    600,
    65535,
    65536,
    10**6,
    2**31,
    2**40,
]
ODD = [None, True, 1.5, [], {}, [None], "text", 7, {"a": 1}]
MODIFIER = {
    "set": [{"name": str, "value": str}],
    "add": [{"name": str, "value": str}],
    "remove": [str],
}
BACKEND = {"name": "web", "port": 80, "weight": int}
CHANGE = {"type": str, "replaceFullPath": str, "replacePrefixMatch": str}
FILTERS: list[dict[str, Any]] = [
    {"type": "RequestHeaderModifier", "requestHeaderModifier": MODIFIER},
    {"type": "ResponseHeaderModifier", "responseHeaderModifier": MODIFIER},
    {
        "type": "RequestRedirect",
        "requestRedirect": {
            "scheme": str,
            "hostname": str,
            "path": CHANGE,
            "port": int,
            "statusCode": int,
        },
    },
    {"type": "URLRewrite", "urlRewrite": {"hostname": str, "path": CHANGE}},
    {
        "type": "RequestMirror",
        "requestMirror": {
            "backendRef": BACKEND,
            "fraction": {"numerator": int, "denominator": int},
        },
    },
    {
        "type": "CORS",
        "cors": {
            "allowOrigins": [str],
            "allowMethods": [str],
            "allowHeaders": [str],
            "exposeHeaders": [str],
            "allowCredentials": bool,
            "maxAge": int,
        },
    },
]
HTTP_RULE = {
    "name": str,
    "matches": [
        {
            "path": {"type": str, "value": str},
            "method": str,
            "headers": [{"name": str, "value": str, "type": str}],
            "queryParams": [{"name": str, "value": str, "type": str}],
        }
    ],
    "filters": FILTERS,
    "backendRefs": [{**BACKEND, "filters": FILTERS[:2]}],
    "timeouts": {"request": str, "backendRequest": str},
    "retry": {"codes": [int], "attempts": int, "backoff": str},
    "sessionPersistence": {"sessionName": str, "type": str},
}
GRPC_RULE = {
    "matches": [
        {
            "method": {"type": str, "service": str, "method": str},
            "headers": [{"name": str, "value": str, "type": str}],
        }
    ],
    "filters": [*FILTERS[:2], FILTERS[4]],
    "backendRefs": [BACKEND],
}
RULES: dict[str, Any] = {
    "HTTPRoute": HTTP_RULE,
    "GRPCRoute": GRPC_RULE,
    "TCPRoute": {"backendRefs": [BACKEND]},
    "TLSRoute": {"backendRefs": [BACKEND]},
}
ROUTES = 1500
_VALUES: dict[Any, list[Any]] = {str: TEXTS, int: NUMBERS, bool: [True, False]}


# Valid values of members: without them, few routes would be accepted.
GOOD: dict[str, list[Any]] = {
    "type": ["Exact", "RegularExpression"],
    "path.type": ["Exact", "PathPrefix", "RegularExpression"],
    "value": ["/a", "/a/b/", "v", "100%", "%REQ(x)%", "a.*", "\\pN+", "ä"],
    "path.value": ["/a", "/", "/a/b/", "/~a;b=c", "/%41", "/a.*", "/(a|b){1,9}", "/a:b@c"],
    "name": ["x-a", "X_B", "host", "content-length", "te", "connection", "x"],
    "method": ["GET", "PATCH"],
    "service": ["pkg.Service", "Service"],
    "remove": ["x-a", "cookie", "content-type"],
    "scheme": ["http", "https"],
    "hostname": ["a.example", "a-b.c"],
    "hostnames": ["a.example", "*.example", "*.b.example"],
    "replaceFullPath": ["/", "/x", "/x\\1", "/x%41"],
    "replacePrefixMatch": ["", "/", "/x", "/x/"],
    "port": [80, 443, 8080],
    "statusCode": [301, 308],
    "numerator": [0, 1, 3],
    "denominator": [7, 10**6, 2**31 - 1],
    "allowOrigins": ["*", "https://a.b", "https://*.b:8443"],
    "allowMethods": ["*", "GET"],
    "allowHeaders": ["*", "x-a"],
    "exposeHeaders": ["*", "x-a"],
    "maxAge": [1, 86400, 2**31 - 1],
    "request": ["0s", "5s", "99999h99999h99999h99999h"],
    "backendRequest": ["0s", "1ms", "1s"],
    "backoff": ["0s", "1ms", "100ms", "99999h99999h"],
    "codes": [503, 429, 599],
    "attempts": [0, 1, 100],
    "weight": [0, 1, 10**6],
    "sessionName": ["s", "x-session", "a.b"],
    "sessionPersistence.type": ["Cookie", "Header"],
    "absoluteTimeout": ["1h", "99999h"],
    "lifetimeType": ["Session", "Permanent"],
}
GOOD["filters.path.type"] = ["ReplaceFullPath", "ReplacePrefixMatch"]
PARENTS = ("requestRedirect", "urlRewrite")  # whose `path` is a change


def generate(rng: random.Random, shape: Any, key: str = "", parent: str = "") -> Any:
    """A random value of a shape, with some members missing and a few of wrong types."""
    if rng.random() < 0.002:
        return rng.choice(ODD)
    if isinstance(shape, type):
        good = GOOD.get(f"{parent}.{key}") or GOOD.get(key)
        if good and rng.random() < 0.97:
            return rng.choice(good)
        return rng.choice(_VALUES[shape])
    if isinstance(shape, list):
        count = rng.choice([0, 1, 1, 1, 2])
        return [generate(rng, rng.choice(shape), key, parent) for _ in range(count)]
    if isinstance(shape, dict):
        often = 0.99 if "type" in shape or "name" in shape else 0.6
        inner = f"filters.{key}" if parent in PARENTS else key
        return {k: generate(rng, v, k, inner) for k, v in shape.items() if rng.random() < often}
    return shape


@pytest.mark.parametrize("seed", [1, 2])
def test_envoy_accepts_what_is_compiled_from_random_routes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    world = World()
    world.service("web", backends=[8080])
    kinds = {"HTTPRoute": "http", "GRPCRoute": "grpc", "TCPRoute": "tcp", "TLSRoute": "tls"}
    for number in range(ROUTES):
        kind = rng.choice(list(kinds))
        name = f"s{number}"
        world.service(name, {80: kinds[kind]})
        parent = {"group": "", "kind": "Service", "name": name}
        spec: dict[str, Any] = {
            "parentRefs": [parent],
            "rules": [generate(rng, RULES[kind], "rules")],
        }
        if kind == "TLSRoute" and rng.random() < 0.7:
            spec["hostnames"] = generate(rng, [str], "hostnames")
        world.add({"kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    config = world.compile()
    validate(config, tmp_path)
    assert ROUTES / 10 < len(config.problems) < ROUTES
