# SPDX-License-Identifier: Apache-2.0
"""Which TLSRoute gets a connection: the compiled chains against a reference."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.waypoint.world import World
from ztunnel.l7.ingress.hostnames import covers, intersection
from ztunnel.l7.names import TypeUrl

PATTERNS = ["", "*.example", "*.a.example", "a.example", "x.a.example", "b.example"]
PROBES = ["a.example", "b.example", "x.a.example", "y.a.example", "x.y.a.example", "c.example", "d"]
LISTENERS = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4, unique=True)
ROUTES = st.lists(
    st.tuples(
        st.integers(-1, 3),  # the listener; -1: all
        st.lists(st.sampled_from(PATTERNS[1:]), min_size=1, max_size=3, unique=True),
    ),
    max_size=4,
)
Routes = list[tuple[int, list[str]]]


def specificity(pattern: str) -> tuple[bool, int]:
    return (bool(pattern) and not pattern.startswith("*."), len(pattern))


def reference(listeners: list[str], routes: Routes, name: str) -> str:
    """The route that gets a connection; empty if it is refused."""
    fitting = [each for each in listeners if covers(each, name)]
    if not fitting:
        return ""
    own = max(fitting, key=specificity)
    found = []
    for number, (section, hostnames) in enumerate(routes):
        if section not in (-1, listeners.index(own)):
            continue
        for hostname in hostnames:
            common = intersection(own, hostname)
            if common is not None and covers(common, name):
                found.append((*specificity(common), -number, f"r{number}"))
    return max(found)[-1] if found else ""


def compiled(listeners: list[str], routes: Routes) -> list[dict[str, Any]]:
    """The filter chains of the port."""
    world = World()
    world.service("web", {443: "tls"}, waypoint="")
    world.add(
        {
            "kind": "Gateway",
            "metadata": {"name": "edge", "namespace": "default"},
            "spec": {
                "gatewayClassName": "ztunnel",
                "listeners": [
                    {
                        "name": f"l{number}",
                        "port": 443,
                        "protocol": "TLS",
                        "tls": {"mode": "Passthrough"},
                        **({"hostname": hostname} if hostname else {}),
                    }
                    for number, hostname in enumerate(listeners)
                ],
            },
        }
    )
    for number, (section, hostnames) in enumerate(routes):
        parent = {"name": "edge", **({"sectionName": f"l{section}"} if section >= 0 else {})}
        created = f"2026-01-0{number + 1}T00:00:00Z"
        world.add(
            {
                "kind": "TLSRoute",
                "metadata": {
                    "name": f"r{number}",
                    "namespace": "default",
                    "creationTimestamp": created,
                },
                "spec": {
                    "parentRefs": [parent],
                    "hostnames": hostnames,
                    "rules": [{"backendRefs": [{"name": "web", "port": 443}]}],
                },
            }
        )
    found = world.compile("default/edge").resources[TypeUrl.LISTENER].values()
    return [chain for listener in found for chain in listener["filter_chains"]]


def selected(chains: list[dict[str, Any]], name: str) -> str:
    """The route of the chain that Envoy selects: exact names, the longest suffix, any name."""
    found = [
        (*specificity(pattern), chain["name"].rpartition("/")[2])
        for chain in chains
        for pattern in chain["filter_chain_match"].get("server_names", [""])
        if covers(pattern, name)
    ]
    route = max(found)[-1] if found else ""
    return route if route.startswith("r") and not route.endswith("refused") else ""


@settings(max_examples=300, deadline=None)
@given(LISTENERS, ROUTES)
def test_chains_select_the_route_of_the_most_specific_listener_and_hostname(
    listeners: list[str], routes: Routes
) -> None:
    chains = compiled(listeners, routes)
    for name in PROBES:
        assert selected(chains, name) == reference(listeners, routes, name), name


@settings(max_examples=100, deadline=None)
@given(LISTENERS, ROUTES)
def test_no_two_chains_have_a_name_in_common(listeners: list[str], routes: Routes) -> None:
    """Envoy rejects a listener with such chains."""
    chains = compiled(listeners, routes)
    patterns = [
        each for chain in chains for each in chain["filter_chain_match"].get("server_names", [""])
    ]
    assert len(patterns) == len(set(patterns))
    assert len({chain["name"] for chain in chains}) == len(chains)
