# SPDX-License-Identifier: Apache-2.0
"""Envoy accepts the routes of any VirtualService: a generated one cannot break a waypoint."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.envoy.traffic.test_virtual_service import virtual_service
from tests.support.waypoint.envoy import validate
from tests.support.waypoint.world import World

_DURATIONS = st.sampled_from(["0s", "1s", "1ms", "1us", "1.5s", "720h", "9999h", "x", ""])
_COUNTS = st.sampled_from([0, 1, 5, 100, 2**31 - 1, 2**40, -1, "many"])
_TEXTS = st.sampled_from(
    ["", "/", "a", "/a", "x-user", ":path", "host", "a b", "é", "\n", "a" * 300, "%REQ(a)%", "\\9"]
)
_REGEXES = st.sampled_from(["", "/a.*", "[", "(a)(b)", "(?P<x>a)", "a{1000}{1000}", "\\C", "(?=a)"])


def _some(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def _list(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(inner, max_size=2)


_STRING = (
    _some({"exact": _TEXTS})
    | _some({"prefix": _TEXTS})
    | _some({"regex": _REGEXES})
    | _some({"exact": _TEXTS, "prefix": _TEXTS})
)
_NAMED = st.dictionaries(_TEXTS, _STRING, max_size=2)
_PERCENT = _some({"value": st.sampled_from([0, 0.01, 50, 100, 101, -1, "a"])})
_MATCH = _some(
    {
        "uri": _STRING,
        "scheme": _STRING,
        "method": _STRING,
        "authority": _STRING,
        "headers": _NAMED,
        "withoutHeaders": _NAMED,
        "queryParams": _NAMED,
        "port": st.sampled_from([80, 81, 0]),
        "sourceNamespace": _TEXTS,
        "ignoreUriCase": st.booleans(),
    }
)
_DESTINATION = _some(
    {
        "host": st.sampled_from(["web0", "web1", "missing", "", "*.a"]),
        "subset": _TEXTS,
        "port": _some({"number": st.sampled_from([80, 81])}),
    }
)
_OPERATIONS = _some(
    {
        "set": st.dictionaries(_TEXTS, _TEXTS, max_size=2),
        "add": st.dictionaries(_TEXTS, _TEXTS, max_size=2),
        "remove": _list(_TEXTS),
    }
)
_HEADERS = _some({"request": _OPERATIONS, "response": _OPERATIONS})
_ROUTE = _some({"destination": _DESTINATION, "weight": _COUNTS, "headers": _HEADERS})
_HTTP = _some(
    {
        "match": _list(_MATCH),
        "headers": _HEADERS,
        "timeout": _DURATIONS,
        "retries": _some(
            {
                "attempts": _COUNTS,
                "perTryTimeout": _DURATIONS,
                "retryOn": st.sampled_from(["5xx", "503,reset", "a b", "9", "gateway-error,1000"]),
                "backoff": _DURATIONS,
                "retryRemoteLocalities": st.booleans(),
                "retryIgnorePreviousHosts": st.booleans(),
            }
        ),
        "rewrite": _some(
            {
                "uri": _TEXTS,
                "authority": _TEXTS,
                "uriRegexRewrite": _some({"match": _REGEXES, "rewrite": _TEXTS}),
            }
        ),
        "fault": _some(
            {
                "delay": _some({"fixedDelay": _DURATIONS, "percentage": _PERCENT}),
                "abort": _some(
                    {
                        "httpStatus": st.sampled_from([0, 200, 503, 600]),
                        "grpcStatus": st.sampled_from(["NOT_FOUND", "nothing"]),
                        "percentage": _PERCENT,
                    }
                ),
            }
        ),
        "corsPolicy": _some(
            {
                "allowOrigins": _list(_STRING),
                "allowMethods": _list(_TEXTS),
                "maxAge": _DURATIONS,
                "allowCredentials": st.booleans(),
            }
        ),
        "mirrors": _list(_some({"destination": _DESTINATION, "percentage": _PERCENT})),
        "route": st.lists(_ROUTE, min_size=1, max_size=3),
    }
)
_OTHER = _some(
    {
        "match": _list(_MATCH),
        "redirect": _some(
            {
                "uri": _TEXTS,
                "authority": _TEXTS,
                "port": st.sampled_from([80, 0, 70000]),
                "derivePort": st.sampled_from(["FROM_REQUEST_PORT", "x"]),
                "scheme": _TEXTS,
                "redirectCode": st.sampled_from([301, 308, 200]),
            }
        ),
    }
) | _some(
    {
        "directResponse": _some(
            {"status": st.sampled_from([100, 200, 599, 600]), "body": _some({"string": _TEXTS})}
        )
    }
)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(st.lists(_HTTP | _OTHER, min_size=60, max_size=60))
def test_envoy_accepts_the_routes_of_any_virtual_service(
    tmp_path_factory: pytest.TempPathFactory, routes: list[dict[str, Any]]
) -> None:
    world = World()
    for number in range(2):
        world.service(f"web{number}", {80: "http"}, [1])
    world.add(virtual_service(*routes, hosts=["web0"]))
    validate(world.compile(), tmp_path_factory.mktemp("envoy"))
