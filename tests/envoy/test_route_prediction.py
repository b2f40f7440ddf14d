# SPDX-License-Identifier: Apache-2.0
"""The evaluator of routes agrees with Envoy, for random routes and requests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import DEFAULT_PEER, request
from tests.support.waypoint.envoy import RunningEnvoy, running_envoy
from tests.support.waypoint.world import World
from ztunnel.l7.names import PeerState
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.routing.evaluate import RouteRequest, evaluate

SERVICES = 40
REQUESTS = 25  # per service
PATHS = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/A", "/a/b%2Fc", "/x/y"]
REGEXES = ["/a.*", "/[ab]+", "/a/b|/x/y", ".*b", "/x/."]
VALUES = ["1", "2", "12"]
HEADERS = ["h1", "h2", "Host"]
QUERIES = ["q", "r"]
METHODS = ["GET", "POST", "DELETE"]
NAMESPACES = ["default", "consumer"]
TARGETS = [
    "/a",
    "/a?q=1",
    "/a/b?q=2&q=1",
    "/a/../x/y",
    "/a//b",
    "/%61/b",
    "/a/b/",
    "/b?r",
    "/x/y?q=12&r=1",
]


@dataclass
class Mesh:
    world: World
    index: RouteIndex
    envoy: RunningEnvoy


def random_value(rng: random.Random, names: list[str]) -> dict[str, str]:
    if rng.random() < 0.3:
        pattern = rng.choice(["[12]", "1.*", ".+"])
        return {"name": rng.choice(names), "type": "RegularExpression", "value": pattern}
    return {"name": rng.choice(names), "value": rng.choice(VALUES)}


def random_match(rng: random.Random, *, only_prefix: bool) -> dict[str, Any]:
    match: dict[str, Any] = {}
    kind = "PathPrefix" if only_prefix else rng.choice(["PathPrefix", "Exact", "RegularExpression"])
    if rng.random() < 0.8:
        value = rng.choice(REGEXES if kind == "RegularExpression" else PATHS[:7])
        match["path"] = {"type": kind, "value": value}
    if rng.random() < 0.3:
        match["method"] = rng.choice(METHODS)
    for name, names in (("headers", HEADERS), ("queryParams", QUERIES)):
        if rng.random() < 0.3:
            match[name] = [random_value(rng, names) for _ in range(rng.randint(1, 2))]
    return match


def random_rule(rng: random.Random, marker: str) -> dict[str, Any]:
    action = rng.choice(["redirect", "backend", "rewrite", "none"])
    change = {
        "type": "ReplacePrefixMatch",
        "replacePrefixMatch": rng.choice(["", "/", "/n", "/n/"]),
    }
    if rng.random() < 0.4:
        change = {"type": "ReplaceFullPath", "replaceFullPath": "/full"}
    prefix = action in ("redirect", "rewrite") and "Prefix" in change["type"]
    rule: dict[str, Any] = {
        "matches": [random_match(rng, only_prefix=prefix) for _ in range(rng.randint(0, 3))]
    }
    mark = {
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"set": [{"name": "x-rule", "value": marker}]},
    }
    backends = [{"name": "echo", "port": 80}]
    if action == "redirect":
        redirect: dict[str, Any] = {"hostname": f"{marker}.example", "path": change}
        if rng.random() < 0.5:
            redirect |= {"scheme": rng.choice(["http", "https"])}
        if rng.random() < 0.5:
            redirect |= {"port": rng.choice([80, 443, 8080])}
        rule["filters"] = [{"type": "RequestRedirect", "requestRedirect": redirect}]
    elif action == "backend":
        rule |= {"filters": [mark], "backendRefs": backends}
    elif action == "rewrite":
        rewrite = {"type": "URLRewrite", "urlRewrite": {"path": change}}
        rule |= {"filters": [mark, rewrite], "backendRefs": backends}
    return rule


def random_route(rng: random.Random, service: str, number: int) -> dict[str, Any]:
    namespace = "consumer" if rng.random() < 0.2 else "default"
    rules = [random_rule(rng, f"{service}-{number}-{n}") for n in range(rng.randint(1, 3))]
    for rule in rules:
        for backend in rule.get("backendRefs", ()):
            backend["namespace"] = "default"
    created = f"2026-01-0{rng.randint(1, 3)}T00:00:00Z"
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {
            "name": f"{service}-{number}",
            "namespace": namespace,
            "creationTimestamp": created,
        },
        "spec": {
            "parentRefs": [
                {"group": "", "kind": "Service", "name": service, "namespace": "default"}
            ],
            "rules": rules,
        },
    }


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    rng = random.Random(11)
    world = World()
    with Backend("echo") as echo:
        world.service("echo", backends=[echo.port], waypoint="")
        for number in range(SERVICES):
            world.service(f"s{number}", {rng.choice([80, 8080]): "http"}, [echo.port])
            for each in range(rng.randint(0, 3)):
                world.add(random_route(rng, f"s{number}", each))
        world.apply(
            """
            apiVersion: gateway.networking.k8s.io/v1
            kind: ReferenceGrant
            metadata: {name: all, namespace: default}
            spec:
              from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: consumer}]
              to: [{group: "", kind: Service}]
            """
        )
        index = RouteIndex()
        index.refresh(world.store)
        with running_envoy(world.compile(), tmp_path_factory.mktemp("envoy")) as envoy:
            yield Mesh(world, index, envoy)


@pytest.mark.parametrize("number", range(SERVICES))
def test_prediction_agrees_with_envoy(mesh: Mesh, number: int) -> None:
    rng = random.Random(number)
    service = mesh.world.mesh.state.service(f"default/s{number}")
    assert service is not None
    (port,) = service.ports
    for _ in range(REQUESTS):
        headers = {"host": rng.choice(["web", "web:81", "1"])}
        headers |= {h: rng.choice(VALUES) for h in ("h1", "h2") if rng.random() < 0.5}
        method, target = rng.choice(METHODS), rng.choice(PATHS + TARGETS)
        namespace = rng.choice(NAMESPACES)
        wanted = evaluate(
            mesh.world.inputs,
            service,
            port,
            RouteRequest(method, target, headers, namespace),
            mesh.index,
        )
        answer = request(
            mesh.envoy.port,
            (service.vips[0], port.port),
            method,
            target,
            headers,
            peer={**DEFAULT_PEER, PeerState.NAMESPACE: namespace},
        )
        context = (method, target, headers, namespace, wanted)
        assert answer.status == (wanted.status or 200), context
        if wanted.location:
            assert answer.headers["location"] == wanted.location, context
        if wanted.status is None:
            received = answer.received
            assert received["path"] == wanted.path, context
            assert received["headers"]["host"] == wanted.host, context
            marker = received["headers"].get("x-rule", "")
            expected = f"{wanted.route.rpartition('/')[2]}-{wanted.rule}" if wanted.route else ""
            assert marker == expected, context
