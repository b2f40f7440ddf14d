# SPDX-License-Identifier: Apache-2.0
"""HTTPRoutes with a Service as parent, in a real Envoy."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.waiting import wait_until
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import DEFAULT_PEER, Answer, request
from tests.support.waypoint.envoy import RunningEnvoy, running_envoy
from tests.support.waypoint.world import World
from ztunnel.l7.names import PeerState


@dataclass
class Mesh:
    """One Envoy; each entry of ROUTES is a service of that name with these rules."""

    envoy: RunningEnvoy
    services: dict[str, tuple[str, int]]
    backends: dict[str, Backend] = field(default_factory=dict)

    def get(self, service: str, path: str = "/", method: str = "GET", **options: Any) -> Answer:
        headers = options.pop("headers", {})
        return request(self.envoy.port, self.services[service], method, path, headers, **options)


def to(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "port": 80, **fields}


def path(value: str, kind: str = "PathPrefix") -> dict[str, Any]:
    return {"path": {"type": kind, "value": value}}


def filters(*each: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    members = {"URLRewrite": "urlRewrite", "CORS": "cors"}
    return [{"type": k, members.get(k, k[0].lower() + k[1:]): v} for k, v in each]


def rule(*backends: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"backendRefs": list(backends), **fields}


def redirect(at: str, **fields: Any) -> dict[str, Any]:
    return {"matches": [path(at)], "filters": filters(("RequestRedirect", fields))}


def rewrite(at: str, **fields: Any) -> dict[str, Any]:
    return rule(to("v1"), matches=[path(at)], filters=filters(("URLRewrite", fields)))


def prefix(value: str) -> dict[str, Any]:
    return {"type": "ReplacePrefixMatch", "replacePrefixMatch": value}


ROUTES: dict[str, list[dict[str, Any]]] = {
    "matching": [
        rule(to("v1"), matches=[path("/")]),
        rule(to("v2"), matches=[path("/v2"), {"headers": [{"name": "Version", "value": "two"}]}]),
        rule(to("v3"), matches=[path("/v2/exact", "Exact")]),
        rule(to("v3"), matches=[path("/re/[0-9]+", "RegularExpression")]),
        rule(to("v3"), matches=[{**path("/v2"), "method": "POST"}]),
        rule(to("v3"), matches=[{**path("/q"), "queryParams": [{"name": "a", "value": "1"}]}]),
        rule(to("v3"), matches=[{"headers": [{"name": "Host", "value": "special"}]}]),
    ],
    "unmatched": [rule(to("v1"), matches=[path("/only")])],
    "weights": [rule(to("v1", weight=80), to("v2", weight=20), to("v3", weight=0))],
    "zero": [rule(to("v1", weight=0))],
    "none": [{"matches": [path("/")]}],
    "missing": [rule(to("v1", weight=50), to("absent", weight=50))],
    "wrong-kind": [rule(to("v1", kind="Bucket", group="example.com"))],
    "foreign": [rule(to("secret", namespace="other"))],
    "extension": [
        rule(to("v1"), matches=[path("/ok")]),
        rule(
            to("v1"),
            matches=[path("/ext")],
            filters=filters(("ExtensionRef", {"group": "x", "kind": "y", "name": "z"})),
        ),
    ],
    "headers": [
        rule(
            to("v1"),
            matches=[path("/request")],
            filters=filters(
                (
                    "RequestHeaderModifier",
                    {
                        "set": [{"name": "X-Set", "value": "100%"}, {"name": "Host", "value": "h"}],
                        "add": [{"name": "X-Add", "value": "more"}],
                        "remove": ["X-Remove"],
                    },
                ),
                (
                    "ResponseHeaderModifier",
                    {"set": [{"name": "Server", "value": "mine"}], "remove": ["X-Secret"]},
                ),
            ),
        ),
        rule(
            to(
                "v2",
                filters=filters(
                    ("RequestHeaderModifier", {"set": [{"name": "X-Backend", "value": "v2"}]})
                ),
            ),
            matches=[path("/backend")],
        ),
    ],
    "redirects": [
        redirect("/host", hostname="example.org"),
        redirect("/status", statusCode=308),
        redirect("/scheme", scheme="https"),
        redirect("/port", port=8083),
        redirect("/full", path={"type": "ReplaceFullPath", "replaceFullPath": "/x"}),
        redirect("/prefix", path=prefix("/y/")),
        redirect("/empty", path=prefix("/")),
        redirect("/all", scheme="https", hostname="e.org", port=8443, statusCode=301),
    ],
    "rewrites": [
        rewrite("/host", hostname="internal.example"),
        rewrite("/full", path={"type": "ReplaceFullPath", "replaceFullPath": "/x\\1y"}),
        rewrite("/prefix/one", path=prefix("/two")),
        rewrite("/slash/", path=prefix("/two/")),
        rewrite("/strip", path=prefix("/")),
        rewrite("/gone", path=prefix("")),
    ],
    "rewrites-root": [rewrite("/", path=prefix("/sub"))],
    "mirror": [
        rule(
            to("v1"),
            filters=filters(
                ("RequestMirror", {"backendRef": to("mirror-a")}),
                ("RequestMirror", {"backendRef": to("mirror-b"), "percent": 50}),
                ("RequestMirror", {"backendRef": to("absent")}),
            ),
        )
    ],
    "cors": [
        rule(
            to("v1"),
            matches=[path("/exact")],
            filters=filters(
                (
                    "CORS",
                    {
                        "allowOrigins": ["https://www.foo.com", "https://*.bar.com"],
                        "allowMethods": ["GET", "PUT"],
                        "allowHeaders": ["x-one", "x-two"],
                        "exposeHeaders": ["x-three"],
                        "allowCredentials": True,
                        "maxAge": 3600,
                    },
                )
            ),
        ),
        rule(
            to("v1"),
            matches=[path("/any")],
            filters=filters(
                (
                    "CORS",
                    {
                        "allowOrigins": ["*"],
                        "allowMethods": ["*"],
                        "allowHeaders": ["*"],
                        "allowCredentials": True,
                    },
                )
            ),
        ),
    ],
    "timeouts": [
        rule(to("slow"), matches=[path("/request")], timeouts={"request": "200ms"}),
        rule(to("slow"), matches=[path("/backend")], timeouts={"backendRequest": "200ms"}),
        rule(to("slow"), matches=[path("/zero")], timeouts={"request": "0s"}),
    ],
    "retries": [
        rule(to("flaky"), matches=[path("/codes")], retry={"codes": [503], "attempts": 3}),
        rule(to("flaky"), matches=[path("/none")]),
        rule(
            to("flaky"),
            matches=[path("/few")],
            retry={"codes": [503], "attempts": 1, "backoff": "10ms"},
        ),
    ],
    "sessions": [
        rule(to("many"), matches=[path("/cookie")], sessionPersistence={"sessionName": "s"}),
        rule(
            to("many"),
            matches=[path("/header")],
            sessionPersistence={"sessionName": "X-Session", "type": "Header"},
        ),
    ],
}


def http_route(name: str, parent: dict[str, Any], rules: list[dict[str, Any]]) -> dict[str, Any]:
    namespace = parent.pop("route_namespace", "default")
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", **parent}], "rules": rules},
    }


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    def slow(_: dict[str, Any]) -> tuple[int, dict[str, str]]:
        time.sleep(0.6)
        return 200, {}

    def secretive(_: dict[str, Any]) -> tuple[int, dict[str, str]]:
        return 200, {"x-secret": "s"}

    def flaky(received: dict[str, Any]) -> tuple[int, dict[str, str]]:
        return (503 if len(attempts) < 3 or received is None else 200, {})

    world = World()
    with ExitStack() as stack:
        names = ["v1", "v2", "v3", "mirror-a", "mirror-b", "secret", "many-0", "many-1", "many-2"]
        backends = {n: stack.enter_context(Backend(n, secretive)) for n in names}
        backends["slow"] = stack.enter_context(Backend("slow", slow))
        backends["flaky"] = stack.enter_context(Backend("flaky", flaky))
        attempts = backends["flaky"].requests
        for name in ("v1", "v2", "v3", "mirror-a", "mirror-b", "slow", "flaky"):
            world.service(name, backends=[backends[name].port], waypoint="")
        many = [backends[f"many-{n}"].port for n in range(3)]
        world.service("many", backends=many, waypoint="")
        world.service("secret", backends=[backends["secret"].port], namespace="other", waypoint="")
        services = {name: world.service(name) for name in ROUTES}
        for name, rules in ROUTES.items():
            world.add(http_route(name, {"name": name}, rules))
        services |= _more_services(world, backends)
        with running_envoy(world.compile(), tmp_path_factory.mktemp("envoy")) as envoy:
            yield Mesh(envoy, services, backends)


def _more_services(world: World, backends: dict[str, Backend]) -> dict[str, tuple[str, int]]:
    """Services with routes of other namespaces, and with a route for one of two ports."""
    own = [backends["v1"].port]
    services = {"shared": world.service("shared", backends=own, namespace="team")}
    services["ports"] = world.service("ports", {80: "http", 81: "http"}, own)
    services["ports:81"] = (services["ports"][0], 81)
    world.add(http_route("ports", {"name": "ports", "port": 81}, [rule(to("v2"))]))
    consumer = {"name": "shared", "namespace": "team", "route_namespace": "consumer"}
    world.add(
        http_route(
            "consumer",
            consumer,
            [
                rule(
                    to("shared", namespace="team"),
                    matches=[path("/shared")],
                    filters=filters(
                        (
                            "ResponseHeaderModifier",
                            {"set": [{"name": "x-consumer", "value": "yes"}]},
                        )
                    ),
                ),
                rule(to("secret", namespace="other"), matches=[path("/secret")]),
            ],
        )
    )
    granted = {"name": "granted", "namespace": "team", "route_namespace": "granted"}
    services["granted"] = world.service("granted", backends=own, namespace="team")
    world.add(http_route("granted", granted, [rule(to("secret", namespace="other"))]))
    world.apply(
        """
        apiVersion: gateway.networking.k8s.io/v1
        kind: ReferenceGrant
        metadata: {name: grant, namespace: other}
        spec:
          from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: granted}]
          to: [{group: "", kind: Service, name: secret}]
        """
    )
    return services


@pytest.mark.parametrize(
    ("at", "headers", "method", "backend"),
    [
        ("/", {}, "GET", "v1"),
        ("/v2", {}, "GET", "v2"),
        ("/v2/", {}, "GET", "v2"),
        ("/v2/x?y", {}, "GET", "v2"),
        ("/v2x", {}, "GET", "v1"),
        ("/V2", {}, "GET", "v1"),
        ("/x", {"version": "two"}, "GET", "v2"),
        ("/x", {"version": "three"}, "GET", "v1"),
        ("/v2/exact", {}, "GET", "v3"),
        ("/v2/exact/", {}, "GET", "v2"),
        ("/re/12", {}, "GET", "v3"),
        ("/re/12/x", {}, "GET", "v1"),
        ("/v2", {}, "POST", "v3"),
        ("/q?a=1&b=2", {}, "GET", "v3"),
        ("/q?a=2", {}, "GET", "v1"),
        ("/x", {"host": "special"}, "GET", "v3"),
    ],
)
def test_most_specific_match_wins(
    mesh: Mesh, at: str, headers: dict[str, str], method: str, backend: str
) -> None:
    assert mesh.get("matching", at, method, headers=headers).backend == backend


def test_request_that_no_rule_matches_gets_404(mesh: Mesh) -> None:
    assert mesh.get("unmatched", "/only/x").status == 200
    assert mesh.get("unmatched", "/other").status == 404


def test_requests_are_distributed_by_weight(mesh: Mesh) -> None:
    counts = Counter(mesh.get("weights").backend for _ in range(200))
    assert set(counts) == {"v1", "v2"}
    assert 15 < counts["v2"] < 70  # expected 40, standard deviation 5.7


@pytest.mark.parametrize("service", ["zero", "none", "wrong-kind"])
def test_rule_without_usable_backend_answers_500(mesh: Mesh, service: str) -> None:
    assert mesh.get(service).status == 500


def test_missing_backend_answers_500_for_its_share(mesh: Mesh) -> None:
    counts = Counter(mesh.get("missing").status for _ in range(100))
    assert set(counts) == {200, 500}
    assert 25 < counts[500] < 75


def test_unsupported_filter_answers_500_for_its_rule_only(mesh: Mesh) -> None:
    assert mesh.get("extension", "/ext").status == 500
    assert mesh.get("extension", "/ok").status == 200


def test_request_headers_are_set_added_and_removed(mesh: Mesh) -> None:
    headers = {"x-set": "old", "x-add": "one", "x-remove": "gone"}
    received = mesh.get("headers", "/request", headers=headers).received["headers"]
    assert received["x-set"] == "100%"
    assert received["x-add"] in ("more", "one,more")  # the backend keeps the last of two lines
    assert "x-remove" not in received
    assert received["host"] == "h"


def test_response_headers_are_set_and_removed(mesh: Mesh) -> None:
    answer = mesh.get("headers", "/request")
    assert answer.headers["server"] == "mine"
    assert "x-secret" not in answer.headers
    assert mesh.get("headers", "/backend").headers["x-secret"] == "s"


def test_backend_filter_changes_requests_to_that_backend(mesh: Mesh) -> None:
    answer = mesh.get("headers", "/backend")
    assert (answer.backend, answer.received["headers"]["x-backend"]) == ("v2", "v2")


@pytest.mark.parametrize(
    ("at", "host", "status", "location"),
    [
        ("/host/a?b=c", "web", 302, "http://example.org/host/a?b=c"),
        ("/status", "web", 308, "http://web/status"),
        ("/scheme", "web", 302, "https://web/scheme"),
        ("/scheme", "web:80", 302, "https://web/scheme"),
        ("/port", "web", 302, "http://web:8083/port"),
        ("/full/a?b=c", "web", 302, "http://web/x?b=c"),
        ("/prefix/a", "web", 302, "http://web/y/a"),
        ("/empty/a", "web", 302, "http://web/a"),
        ("/empty", "web", 302, "http://web/"),
        ("/all", "web", 301, "https://e.org:8443/all"),
    ],
)
def test_redirect(mesh: Mesh, at: str, host: str, status: int, location: str) -> None:
    answer = mesh.get("redirects", at, headers={"host": host})
    assert (answer.status, answer.headers["location"]) == (status, location)


@pytest.mark.parametrize(
    ("service", "at", "received"),
    [
        ("rewrites", "/full/a?b=c", "/x\\1y?b=c"),
        ("rewrites", "/prefix/one", "/two"),
        ("rewrites", "/prefix/one/three", "/two/three"),
        ("rewrites", "/slash/three", "/two/three"),
        ("rewrites", "/slash", "/two"),
        ("rewrites", "/strip/one", "/one"),
        ("rewrites", "/strip", "/"),
        ("rewrites", "/strip/", "/"),
        ("rewrites", "/strip?b=c", "/?b=c"),
        ("rewrites", "/gone/one", "/one"),
        ("rewrites-root", "/one", "/sub/one"),
    ],
)
def test_path_is_rewritten(mesh: Mesh, service: str, at: str, received: str) -> None:
    assert mesh.get(service, at).received["path"] == received


def test_host_is_rewritten(mesh: Mesh) -> None:
    received = mesh.get("rewrites", "/host").received["headers"]
    assert received["host"] == "internal.example"
    assert "x-forwarded-host" not in received


def test_requests_are_mirrored(mesh: Mesh) -> None:
    for _ in range(60):
        assert mesh.get("mirror", "/m", headers={"host": "web"}).backend == "v1"
    copies = mesh.backends["mirror-a"].requests
    wait_until(lambda: len(copies) == 60, lambda: len(copies))
    assert copies[0]["headers"]["host"] == "web"
    assert 10 < len(mesh.backends["mirror-b"].requests) < 50  # expected 30, deviation 3.9


def preflight(origin: str, method: str = "PUT") -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "x-one",
    }


@pytest.mark.parametrize("origin", ["https://www.foo.com", "https://a.b.bar.com"])
def test_preflight_of_a_permitted_origin(mesh: Mesh, origin: str) -> None:
    answer = mesh.get("cors", "/exact", "OPTIONS", headers=preflight(origin))
    assert (answer.status, answer.backend) == (200, "")
    found = {k: v for k, v in answer.headers.items() if k.startswith("access-control")}
    assert found == {
        "access-control-allow-origin": origin,
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET, PUT",
        "access-control-allow-headers": "x-one, x-two",
        "access-control-expose-headers": "x-three",
        "access-control-max-age": "3600",
    }


@pytest.mark.parametrize("origin", ["https://foo.com", "http://a.bar.com", "https://a.bar.com.x"])
def test_preflight_of_another_origin_gets_no_permission(mesh: Mesh, origin: str) -> None:
    answer = mesh.get("cors", "/exact", "OPTIONS", headers=preflight(origin))
    assert answer.backend == ""
    assert "access-control-allow-origin" not in answer.headers


def test_wildcards_with_credentials_echo_the_request(mesh: Mesh) -> None:
    answer = mesh.get("cors", "/any", "OPTIONS", headers=preflight("https://x.org"))
    assert answer.headers["access-control-allow-origin"] == "https://x.org"
    assert answer.headers["access-control-allow-methods"] == "PUT"
    assert answer.headers["access-control-allow-headers"] == "x-one"


def test_response_to_a_permitted_origin_carries_cors_headers(mesh: Mesh) -> None:
    answer = mesh.get("cors", "/exact", headers={"origin": "https://www.foo.com"})
    assert answer.backend == "v1"
    assert answer.headers["access-control-allow-origin"] == "https://www.foo.com"


@pytest.mark.parametrize(("at", "status"), [("/request", 504), ("/backend", 504), ("/zero", 200)])
def test_timeouts(mesh: Mesh, at: str, status: int) -> None:
    assert mesh.get("timeouts", at).status == status


@pytest.mark.parametrize(
    ("at", "status", "attempts"), [("/codes", 200, 3), ("/none", 503, 1), ("/few", 503, 2)]
)
def test_retries(mesh: Mesh, at: str, status: int, attempts: int) -> None:
    mesh.backends["flaky"].requests.clear()
    assert mesh.get("retries", at).status == status
    assert len(mesh.backends["flaky"].requests) == attempts


def test_cookie_keeps_a_session_on_one_endpoint(mesh: Mesh) -> None:
    first = mesh.get("sessions", "/cookie")
    name, _, rest = first.headers["set-cookie"].partition("=")
    assert name == "s"
    cookie = {"cookie": f"s={rest.partition(';')[0]}"}
    again = {mesh.get("sessions", "/cookie", headers=cookie).backend for _ in range(12)}
    assert again == {first.backend}
    assert len({mesh.get("sessions", "/cookie").backend for _ in range(12)}) > 1


def test_header_keeps_a_session_on_one_endpoint(mesh: Mesh) -> None:
    first = mesh.get("sessions", "/header")
    session = {"x-session": first.headers["x-session"]}
    again = {mesh.get("sessions", "/header", headers=session).backend for _ in range(12)}
    assert again == {first.backend}


def test_route_applies_to_the_port_that_it_names(mesh: Mesh) -> None:
    assert mesh.get("ports").backend == "v1"
    assert mesh.get("ports:81").backend == "v2"


def of_namespace(namespace: str) -> dict[PeerState, str]:
    return {**DEFAULT_PEER, PeerState.NAMESPACE: namespace}


def test_consumer_route_applies_to_clients_of_its_namespace(mesh: Mesh) -> None:
    ours = mesh.get("shared", "/shared", peer=of_namespace("consumer"))
    assert (ours.backend, ours.headers.get("x-consumer")) == ("v1", "yes")
    assert mesh.get("shared", "/other", peer=of_namespace("consumer")).status == 404
    for peer in (of_namespace("team"), of_namespace("consumer2"), {}):
        theirs = mesh.get("shared", "/shared", peer=peer)
        assert (theirs.backend, theirs.headers.get("x-consumer")) == ("v1", None)


def test_consumer_route_does_not_lend_the_waypoints_identity(mesh: Mesh) -> None:
    assert mesh.get("shared", "/secret", peer=of_namespace("consumer")).status == 500


def test_reference_grant_permits_a_backend_of_another_namespace(mesh: Mesh) -> None:
    assert mesh.get("granted", peer=of_namespace("granted")).backend == "secret"


def test_route_of_the_waypoints_namespace_needs_no_grant(mesh: Mesh) -> None:
    assert mesh.get("foreign").backend == "secret"


def test_configuration_uses_no_deprecated_field(mesh: Mesh) -> None:
    assert mesh.envoy.stat("runtime.deprecated_feature_use") == 0
