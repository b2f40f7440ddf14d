# SPDX-License-Identifier: Apache-2.0
"""VirtualServices: which one applies, and how a real Envoy routes with it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.envoy.traffic.worlds import destination_rule, world_with_versions
from tests.support.waypoint.backend import Backend, Respond
from tests.support.waypoint.client import DEFAULT_PEER, Answer, request
from tests.support.waypoint.envoy import running_envoy
from tests.support.waypoint.world import GATEWAY, World
from ztunnel.l7.config import RouteTable
from ztunnel.l7.inputs import Destination, Protocol
from ztunnel.l7.names import PeerState
from ztunnel.l7.traffic.routes import route_source
from ztunnel.l7.traffic.unused import unused_problems

SUBSETS = [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")]


def virtual_service(
    *routes: dict[str, Any],
    name: str = "web",
    namespace: str = "default",
    created: str = "",
    **spec: Any,
) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
    found = {"hosts": ["web"], "http": list(routes), **spec}
    return {"kind": "VirtualService", "metadata": metadata, "spec": found}


def to(subset: str = "", **fields: Any) -> dict[str, Any]:
    destination = {"host": "web"} | ({"subset": subset} if subset else {})
    return {"destination": destination, **fields}


class Web:
    """A running waypoint in front of the versions v1 and v2 of `web`."""

    def __init__(self, port: int, vip: tuple[str, int], backends: dict[str, Backend]) -> None:
        self.port, self.vip, self.backends = port, vip, backends

    def get(self, path: str = "/", **options: Any) -> Answer:
        return request(self.port, self.vip, path=path, **options)


@contextmanager
def web(directory: Path, *routes: dict[str, Any], respond: Respond | None = None) -> Iterator[Web]:
    with ExitStack() as stack:
        backends = {v: stack.enter_context(Backend(v, respond)) for v in ("v1", "v2")}
        world, vip = world_with_versions(backends)
        world.add(destination_rule({}, subsets=SUBSETS))
        world.add(virtual_service(*routes))
        config = world.compile()
        assert config.problems == ()
        envoy = stack.enter_context(running_envoy(config, directory))
        yield Web(envoy.port, vip, backends)


def table(world: World) -> RouteTable | None:
    service = world.mesh.state.service("default/web")
    assert service is not None
    destination = Destination(
        gateway=GATEWAY, protocol=Protocol.HTTP, service=service, port=service.ports[0]
    )
    return route_source(world.inputs, destination)


def test_weights_select_subsets(tmp_path: Path) -> None:
    route = {"route": [to("v1", weight=80), to("v2", weight=20)]}
    with web(tmp_path, route) as running:
        seen = Counter(running.get().backend for _ in range(200))
        assert 130 <= seen["v1"] <= 185
        assert seen["v1"] + seen["v2"] == 200


@pytest.mark.parametrize(
    ("match", "request_options", "other_options"),
    [
        ({"uri": {"prefix": "/a"}}, {"path": "/ab"}, {"path": "/b"}),
        ({"uri": {"exact": "/a"}}, {"path": "/a?x=1"}, {"path": "/a/"}),
        ({"uri": {"regex": "/a[0-9]+"}}, {"path": "/a12"}, {"path": "/ab"}),
        ({"uri": {"exact": "/A"}, "ignoreUriCase": True}, {"path": "/a"}, {"path": "/b"}),
        ({"method": {"exact": "POST"}}, {"method": "POST"}, {"method": "GET"}),
        ({"headers": {"x": {"exact": "1"}}}, {"headers": {"x": "1"}}, {"headers": {"x": "2"}}),
        ({"headers": {"x": {}}}, {"headers": {"x": "1"}}, {}),
        ({"withoutHeaders": {"x": {}}}, {}, {"headers": {"x": "1"}}),
        ({"queryParams": {"q": {"prefix": "a"}}}, {"path": "/?q=ab"}, {"path": "/?q=b"}),
        ({"authority": {"exact": "a.b"}}, {"headers": {"host": "a.b"}}, {}),
        ({"scheme": {"exact": "http"}}, {}, {"headers": {"x-forwarded-proto": "https"}}),
        ({"port": 80}, {}, None),
        (
            {"sourceNamespace": "shop"},
            {"peer": {**DEFAULT_PEER, PeerState.NAMESPACE: "shop"}},
            {},
        ),
    ],
)
def test_match_selects_requests(
    match: dict[str, Any],
    request_options: dict[str, Any],
    other_options: dict[str, Any] | None,
    tmp_path: Path,
) -> None:
    routes = ({"match": [match], "route": [to("v1")]}, {"route": [to("v2")]})
    with web(tmp_path, *routes) as running:
        assert running.get(**request_options).backend == "v1"
        if other_options is not None:
            assert running.get(**other_options).backend == "v2"


def test_request_without_matching_route_is_not_found(tmp_path: Path) -> None:
    with web(tmp_path, {"match": [{"uri": {"prefix": "/a"}}], "route": [to()]}) as running:
        assert running.get("/b").status == 404


def test_matches_for_other_ports_and_gateways_do_not_apply() -> None:
    world = World()
    world.service("web")
    other = [{"port": 81}, {"gateways": ["ingress"]}]
    world.add(virtual_service({"match": other, "route": [to()]}))
    found = table(world)
    assert found is not None
    assert [route.get("direct_response") for route in found.routes] == [{"status": 404}]


def test_redirect_and_direct_response(tmp_path: Path) -> None:
    redirect = {"uri": "/new", "authority": "example.com", "redirectCode": 308}
    direct = {"status": 418, "body": {"string": "teapot"}}
    with web(
        tmp_path,
        {"match": [{"uri": {"prefix": "/old"}}], "redirect": redirect},
        {"directResponse": direct},
    ) as running:
        answer = running.get("/old")
        assert (answer.status, answer.headers["location"]) == (308, "http://example.com/new")
        answer = running.get("/")
        assert (answer.status, answer.body) == (418, b"teapot")


def test_rewrite_changes_path_and_host(tmp_path: Path) -> None:
    with web(
        tmp_path,
        {
            "match": [{"uri": {"prefix": "/a/"}}],
            "rewrite": {"uri": "/b/", "authority": "inner"},
            "route": [to()],
        },
        {
            "rewrite": {"uriRegexRewrite": {"match": "/c/(.*)", "rewrite": "/\\1/c"}},
            "route": [to()],
        },
    ) as running:
        received = running.get("/a/x?y=1").received
        assert received["path"] == "/b/x?y=1"
        assert received["headers"]["host"] == "inner"
        assert running.get("/c/x").received["path"] == "/x/c"


def test_headers_are_changed_by_route_and_destination(tmp_path: Path) -> None:
    operations = {
        "request": {"set": {"x-a": "100%"}, "remove": ["x-gone"]},
        "response": {"add": {"x-b": "b"}},
    }
    destination = {"request": {"add": {"x-c": "c"}}}
    route = {"headers": operations, "route": [to(headers=destination)]}
    with web(tmp_path, route) as running:
        answer = running.get(headers={"x-gone": "1", "x-a": "old"})
        received = answer.received["headers"]
        assert (received["x-a"], received["x-c"]) == ("100%", "c")
        assert "x-gone" not in received
        assert answer.headers["x-b"] == "b"


def test_timeout_and_retries(tmp_path: Path) -> None:
    attempts: list[str] = []

    def flaky(asked: dict[str, Any]) -> tuple[int, dict[str, str]]:
        attempts.append(asked["path"])
        if asked["path"] == "/slow":
            time.sleep(1)
        return (503 if len(attempts) % 3 else 200), {}

    with web(
        tmp_path,
        {"match": [{"uri": {"prefix": "/slow"}}], "timeout": "0.2s", "route": [to()]},
        {
            "match": [{"uri": {"prefix": "/never"}}],
            "retries": {"attempts": 0},
            "route": [to()],
        },
        {"retries": {"attempts": 3, "retryOn": "503", "backoff": "1ms"}, "route": [to()]},
        respond=flaky,
    ) as running:
        assert running.get("/flaky").status == 200
        assert len(attempts) == 3
        assert running.get("/never").status == 503
        assert len(attempts) == 4
        assert running.get("/slow").status == 504


def test_faults_are_injected(tmp_path: Path) -> None:
    abort = {"abort": {"httpStatus": 418, "percentage": {"value": 100}}}
    delay = {"delay": {"fixedDelay": "0.3s", "percentage": {"value": 100}}}
    half = {"abort": {"httpStatus": 418, "percentage": {"value": 50}}}
    with web(
        tmp_path,
        {"match": [{"uri": {"prefix": "/abort"}}], "fault": abort, "route": [to()]},
        {"match": [{"uri": {"prefix": "/half"}}], "fault": half, "route": [to()]},
        {"fault": delay, "route": [to()]},
    ) as running:
        assert running.get("/abort").status == 418
        before = time.monotonic()
        assert running.get("/delay").status == 200
        assert time.monotonic() - before >= 0.3
        seen = Counter(running.get("/half").status for _ in range(100))
        assert 25 <= seen[418] <= 75


def test_requests_are_mirrored(tmp_path: Path) -> None:
    mirror = {"host": "web", "subset": "v2"}
    with web(
        tmp_path,
        {"match": [{"uri": {"prefix": "/all"}}], "mirror": mirror, "route": [to("v1")]},
        {
            "mirrors": [{"destination": mirror, "percentage": {"value": 0}}],
            "route": [to("v1")],
        },
    ) as running:
        assert running.get("/all").backend == "v1"
        assert running.get("/none").backend == "v1"
        deadline = time.monotonic() + 5
        while not running.backends["v2"].requests:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert [one["path"] for one in running.backends["v2"].requests] == ["/all"]


def test_preflight_is_answered_for_an_allowed_origin(tmp_path: Path) -> None:
    cors = {
        "allowOrigins": [{"exact": "https://a.example"}],
        "allowMethods": ["GET", "PUT"],
        "maxAge": "10m",
    }
    with web(tmp_path, {"corsPolicy": cors, "route": [to()]}) as running:
        headers = {"origin": "https://a.example", "access-control-request-method": "PUT"}
        answer = running.get(method="OPTIONS", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.headers["access-control-allow-methods"] == "GET,PUT"
        assert answer.headers["access-control-max-age"] == "600"


def test_http_route_replaces_the_virtual_service(tmp_path: Path) -> None:
    with Backend("v1") as backend:
        world, vip = world_with_versions({"v1": backend})
        world.add(virtual_service({"directResponse": {"status": 418}}))
        world.apply("""
            kind: HTTPRoute
            metadata: {name: web, namespace: default}
            spec:
              parentRefs: [{group: "", kind: Service, name: web}]
              rules: [{backendRefs: [{name: web, port: 80}]}]
            """)
        config = world.compile()
        assert [(p.kind, p.reason) for p in config.problems] == [("VirtualService", "Conflicted")]
        with running_envoy(config, tmp_path) as envoy:
            assert request(envoy.port, vip).status == 200


def test_invalid_route_answers_500_and_others_work(tmp_path: Path) -> None:
    with Backend("v1") as backend:
        world, vip = world_with_versions({"v1": backend})
        world.add(
            virtual_service(
                {"match": [{"uri": {"prefix": "/a"}}], "delegate": {"name": "other"}},
                {"match": [{"uri": {"prefix": "/b"}}], "route": [to("missing")]},
                {"match": [{"uri": {"regex": "["}}], "route": [to()]},
                {"match": [{"sourceLabels": {"a": "b"}}], "route": [to()]},
                {"match": [{"uri": {"prefix": "/c"}}], "route": [{"destination": {"host": "no"}}]},
                {"route": [to()]},
            )
        )
        config = world.compile()
        fields = {problem.field for problem in config.problems}
        assert fields == {
            "spec.http[0]",
            "spec.http[1].route[0].destination.subset",
            "spec.http[2].match[0]",
            "spec.http[3].match[0]",
            "spec.http[4].route[0].destination",
        }
        with running_envoy(config, tmp_path) as envoy:
            found = [
                request(envoy.port, vip, path=path).status for path in ("/a", "/b", "/c", "/d")
            ]
            assert found == [500, 503, 503, 200]


@pytest.mark.parametrize(
    ("changes", "applies"),
    [
        ({}, True),
        ({"hosts": ["web.default.svc.cluster.local"]}, True),
        ({"hosts": ["*.default.svc.cluster.local"]}, True),
        ({"hosts": ["other"]}, False),
        ({"gateways": ["mesh"]}, True),
        ({"gateways": ["ingress"]}, False),
        ({"exportTo": ["elsewhere"]}, False),
        ({"namespace": "elsewhere", "hosts": ["web.default.svc.cluster.local"]}, False),
    ],
)
def test_virtual_service_applies_by_host_gateway_and_namespace(
    changes: dict[str, Any], applies: bool
) -> None:
    world = World()
    world.service("web")
    world.add(virtual_service({"route": [to()]}, **changes))
    assert (table(world) is not None) is applies


def test_oldest_of_a_host_applies_and_the_others_are_reported() -> None:
    world = World()
    world.service("web")
    world.add(virtual_service({"directResponse": {"status": 201}}, name="b", created="2021"))
    world.add(virtual_service({"directResponse": {"status": 202}}, name="a", created="2022"))
    found = table(world)
    assert found is not None
    assert found.routes[0]["direct_response"]["status"] == 201
    assert [(p.name, p.reason) for p in found.problems] == [("a", "Conflicted")]


def test_destination_of_another_namespace_needs_a_grant() -> None:
    world = World()
    world.service("web", namespace="shop", waypoint=GATEWAY)
    world.service("db", namespace="data")
    route = {"route": [{"destination": {"host": "db.data.svc.cluster.local"}}]}
    world.add(virtual_service(route, namespace="shop"))
    service = world.mesh.state.service("shop/web")
    assert service is not None
    destination = Destination(
        gateway=GATEWAY, protocol=Protocol.HTTP, service=service, port=service.ports[0]
    )
    found = route_source(world.inputs, destination)
    assert found is not None
    assert not found.uses
    assert "ReferenceGrant" in found.problems[0].message
    origin = {"group": "networking.istio.io", "kind": "VirtualService", "namespace": "shop"}
    grant = {"from": [origin], "to": [{"group": "", "kind": "Service"}]}
    metadata = {"name": "grant", "namespace": "data"}
    world.add({"kind": "ReferenceGrant", "metadata": metadata, "spec": grant})
    found = route_source(world.inputs, destination)
    assert found is not None
    assert [ref.name for ref in found.uses] == ["data/db|80"]


def test_tcp_routes_select_subsets(tmp_path: Path) -> None:
    with Backend("v1") as v1, Backend("v2") as v2:
        world, vip = world_with_versions({"v1": v1, "v2": v2}, protocol="tcp")
        world.add(destination_rule({}, subsets=SUBSETS))
        other = {"match": [{"port": 81}], "route": [to("v1")]}
        route = {"match": [{"port": 80}], "route": [to("v2")]}
        world.add(virtual_service(http=[], tcp=[other, route]))
        config = world.compile()
        assert config.problems == ()
        with running_envoy(config, tmp_path) as envoy:
            assert {request(envoy.port, vip).backend for _ in range(6)} == {"v2"}


def test_tcp_route_with_unsupported_match_closes_connections(tmp_path: Path) -> None:
    with Backend("v1") as v1:
        world, vip = world_with_versions({"v1": v1}, protocol="tcp")
        match = {"destinationSubnets": ["10.0.0.0/8"]}
        world.add(virtual_service(http=[], tcp=[{"match": [match], "route": [to()]}]))
        config = world.compile()
        assert [problem.severity for problem in config.problems] == ["error"]
        with running_envoy(config, tmp_path) as envoy, pytest.raises(OSError):
            request(envoy.port, vip)


def test_tls_routes_are_reported() -> None:
    world, _ = world_with_versions({}, protocol="tls")
    world.add(virtual_service(http=[], tls=[{"match": [{"sniHosts": ["a"]}], "route": [to()]}]))
    (problem,) = world.compile().problems
    assert (problem.field, problem.severity) == ("spec.tls", "ignored")


def test_objects_that_no_waypoint_uses_are_reported() -> None:
    world, _ = world_with_versions({})
    world.add(virtual_service({"route": [to()]}))
    world.add(virtual_service({"route": [to()]}, name="unused", hosts=["other"]))
    world.add(destination_rule({}))
    world.add(destination_rule({}, name="unused", host="other"))
    found = unused_problems(world.inputs, ())
    assert [(p.kind, p.name) for p in found] == [
        ("DestinationRule", "unused"),
        ("VirtualService", "unused"),
    ]
