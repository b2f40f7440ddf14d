# SPDX-License-Identifier: Apache-2.0
"""Envoy selects listener, hostname and rule as a reference that follows Gateway API's text.

The reference shares no code with the compiler: it goes through all listeners and rules for each
request. `ztctl route test` has to predict the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.waypoint.world import World
from ztunnel.l7.ingress.evaluate import evaluate
from ztunnel.l7.routing.evaluate import Receiver, RouteRequest

PORTS = range(1, 13)  # each is a case of its own
HOSTNAMES = ["", "*.com", "*.a.com", "*.b.a.com", "a.com", "b.a.com", "c.b.a.com", "x.com"]
HOSTS = [
    "com",
    "a.com",
    "A.com",
    "b.a.com",
    "x.a.com",
    "c.b.a.com",
    "d.b.a.com:81",
    "x.com",
    "y.org",
]
PATHS = ["/", "/a", "/a/b"]
REQUESTS = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab"]
SEED = 20261130


@dataclass
class Route:
    name: str
    listeners: list[str]
    hostnames: list[str]
    rules: list[tuple[str, str]]  # kind and value of a path

    def manifest(self) -> dict[str, Any]:
        match = [{"path": {"type": kind, "value": value}} for kind, value in self.rules]
        redirects = [
            {
                "matches": [each],
                "filters": [
                    {
                        "type": "RequestRedirect",
                        "requestRedirect": {"hostname": f"{self.name}-{number}"},
                    }
                ],
            }
            for number, each in enumerate(match)
        ]
        return {
            "kind": "HTTPRoute",
            "metadata": {"name": self.name, "namespace": "default"},
            "spec": {
                "parentRefs": [{"name": "edge", "sectionName": each} for each in self.listeners],
                "hostnames": [each for each in self.hostnames if each],
                "rules": redirects,
            },
        }


@dataclass
class Case:
    port: int
    listeners: dict[str, str] = field(default_factory=dict)  # hostname by name
    routes: list[Route] = field(default_factory=list)  # oldest first

    def expected(self, host: str, path: str) -> str:
        """The name of the rule that gets a request; empty for none."""
        name = host.partition(":")[0].lower()
        found = [each for each in self.listeners.items() if matches(each[1], name)]
        if not found:
            return ""
        listener, hostname = max(found, key=lambda each: rank(each[1]))
        served = []
        for route in self.routes:
            for each in route.hostnames or [""]:
                if listener in route.listeners and matches(each, name):
                    served.append((max(each, hostname, key=rank), route))
        best = max((rank(each) for each, _ in served), default=None)
        rules = [
            (kind == "Exact", len(value), f"{route.name}-{number}", kind, value)
            for each, route in served
            if rank(each) == best
            for number, (kind, value) in enumerate(route.rules)
        ]
        for _, _, rule, kind, value in sorted(rules, key=lambda r: (not r[0], -r[1])):
            prefix = value.rstrip("/") + "/"
            if path == value or (kind == "PathPrefix" and path.startswith(prefix)):
                return rule
        return ""


def matches(hostname: str, name: str) -> bool:
    if hostname.startswith("*."):
        return name.endswith(hostname[1:]) and name != hostname[1:]
    return hostname in ("", name)


def rank(hostname: str) -> tuple[bool, int]:
    return (not hostname.startswith("*") and bool(hostname), len(hostname))


def random_case(rng: random.Random, port: int) -> Case:
    case = Case(port)
    for number, hostname in enumerate(rng.sample(HOSTNAMES, rng.randint(1, 4))):
        case.listeners[f"l{port}-{number}"] = hostname
    for number in range(rng.randint(1, 5)):
        kinds = [(kind, path) for kind in ("Exact", "PathPrefix") for path in PATHS]
        route = Route(
            f"r{port:02}-{number}",
            rng.sample(list(case.listeners), rng.randint(1, len(case.listeners))),
            rng.sample(HOSTNAMES[1:], rng.randint(0, 3)),
            rng.sample(kinds, rng.randint(1, 3)),
        )
        case.routes.append(route)
    return case


@dataclass
class Edge:
    world: World
    gateway: RunningGateway
    cases: list[Case]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    rng = random.Random(SEED)
    cases = [random_case(rng, port) for port in PORTS]
    listeners = [
        {"name": name, "port": case.port, "protocol": "HTTP"}
        | ({"hostname": hostname} if hostname else {})
        for case in cases
        for name, hostname in case.listeners.items()
    ]
    spec = {"gatewayClassName": "ztunnel", "listeners": listeners}
    metadata = {"name": "edge", "namespace": "default"}
    world = World().add({"kind": "Gateway", "metadata": metadata, "spec": spec})
    for case in cases:
        for route in case.routes:
            world.add(route.manifest())
    directory: Path = tmp_path_factory.mktemp("envoy")
    with running_gateway(world.compile("default/edge"), directory) as found:
        yield Edge(world, found, cases)


def test_envoy_and_prediction_agree_with_the_reference(edge: Edge) -> None:
    gateway = edge.world.store.get("Gateway", "default", "edge")
    assert gateway is not None
    found = 0
    for case in edge.cases:
        for host in HOSTS:
            for path in REQUESTS:
                wanted = case.expected(host, path)
                place = f"port {case.port} {host} {path}: {case}"
                answer = fetch(edge.gateway.ports[case.port], host, path)
                location = answer.headers.get("location", "")
                assert location.removeprefix("http://").partition(":")[0] == wanted, place
                assert (answer.status == 404) == (not wanted), place
                request = RouteRequest("GET", path, {"host": host}, "")
                receiver = Receiver(None, case.port)
                predicted = evaluate(edge.world.inputs, gateway, receiver, request).decision
                assert predicted.status == answer.status, place
                if wanted:
                    assert predicted.location == location, place
                found += bool(wanted)
    assert found > 100
