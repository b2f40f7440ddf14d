# SPDX-License-Identifier: Apache-2.0
"""A namespace with very many routes does not affect the routes of others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.waypoint.world import World
from ztunnel.l7.ingress import attachment
from ztunnel.l7.names import TypeUrl

GATEWAY = {
    "kind": "Gateway",
    "metadata": {"name": "edge", "namespace": "default"},
    "spec": {
        "gatewayClassName": "ztunnel",
        "listeners": [
            {
                "name": "http",
                "port": 80,
                "protocol": "HTTP",
                "allowedRoutes": {"namespaces": {"from": "All"}},
            }
        ],
    },
}


def route(namespace: str, name: str, day: int, hostnames: int, matches: int) -> dict[str, Any]:
    return {
        "kind": "HTTPRoute",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": f"2026-01-{day:02}T00:00:00Z",
        },
        "spec": {
            "parentRefs": [{"name": "edge", "namespace": "default"}],
            "hostnames": [f"{name}{each}.{namespace}.org" for each in range(hostnames)],
            "rules": [{"matches": [{"path": {"value": f"/{each}"}} for each in range(matches)]}],
        },
    }


def test_youngest_routes_beyond_the_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment, "MAX_NAMESPACE_MATCHES", 10)
    world = World().add(GATEWAY)
    world.add(route("tenant", "young", 3, 1, 1)).add(route("tenant", "large", 2, 3, 3))
    world.add(route("tenant", "old", 1, 2, 1)).add(route("other", "web", 4, 1, 10))
    found = world.compile("default/edge")
    hosts = found.resources[TypeUrl.ROUTE]["http|80"]["virtual_hosts"]
    names = {domain for each in hosts for domain in each["domains"]}
    assert names == {"*", "old0.tenant.org", "old1.tenant.org", "web0.other.org"}
    problems = [each for each in found.problems if each.reason == "TooManyRoutes"]
    assert {(each.namespace, each.name) for each in problems} == {
        ("tenant", "large"),
        ("tenant", "young"),
    }


def test_route_with_too_many_hostnames_is_invalid() -> None:
    world = World().add(GATEWAY).add(route("default", "many", 1, 65, 1))
    found = world.compile("default/edge")
    (config,) = found.resources[TypeUrl.ROUTE].values()
    assert [each["domains"] for each in config["virtual_hosts"]] == [["*"]]
    assert any("at most 64" in each.message for each in found.problems)
