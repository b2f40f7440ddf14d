# SPDX-License-Identifier: Apache-2.0
"""Which routes attach to which ports, and why others do not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.waypoint.world import World
from ztunnel.l7.names import TypeUrl
from ztunnel.l7.objects import L7Object
from ztunnel.l7.routing.attachment import AcceptedReason, RouteIndex
from ztunnel.l7.routing.references import ResolvedReason
from ztunnel.l7.routing.route_status import ParentStatus, RouteStatus, route_status


def route(
    kind: str = "HTTPRoute",
    name: str = "r",
    *,
    namespace: str = "default",
    parent: dict[str, Any] | None = None,
    backends: list[dict[str, Any]] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    parent = {"group": "", "kind": "Service", "name": "web", **(parent or {})}
    rules = [{"backendRefs": backends if backends is not None else [{"name": "web", "port": 80}]}]
    return {
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"parentRefs": [parent], "rules": rules, **spec},
    }


@pytest.fixture
def world() -> World:
    world = World()
    world.service("web", {80: "http", 81: "http", 3306: "tcp", 443: "tls", 9000: ""})
    world.service("elsewhere", namespace="other")
    world.service("plain", waypoint="")
    return world


def status(world: World, obj: dict[str, Any]) -> RouteStatus:
    world.add(obj)
    index = RouteIndex()
    index.refresh(world.store)
    return route_status(world.inputs, _stored(world, obj), index)


def only(world: World, obj: dict[str, Any]) -> ParentStatus:
    (parent,) = status(world, obj).parents
    return parent


def _stored(world: World, obj: dict[str, Any]) -> L7Object:
    metadata = obj["metadata"]
    found = world.store.get(obj["kind"], metadata["namespace"], metadata["name"])
    assert found is not None
    return found


def test_route_without_a_port_applies_to_all_ports_of_its_protocol(world: World) -> None:
    assert only(world, route()).ports == (80, 81, 9000)
    assert only(world, route("TLSRoute", "tls")).ports == (443,)
    assert only(world, route("TCPRoute", "tcp")).ports == (3306,)  # 443: TLSRoute, 9000: HTTPRoute


@pytest.mark.parametrize("parent", [{"port": 81}, {"sectionName": "p81"}])
def test_port_and_section_name_select_a_port(world: World, parent: dict[str, Any]) -> None:
    assert only(world, route(parent=parent)).ports == (81,)


@pytest.mark.parametrize(
    ("parent", "reason"),
    [
        ({"name": "absent"}, AcceptedReason.NO_MATCHING_PARENT),
        ({"port": 82}, AcceptedReason.NO_MATCHING_PARENT),
        ({"port": 81, "sectionName": "p80"}, AcceptedReason.NO_MATCHING_PARENT),
        ({"port": 3306}, AcceptedReason.NO_MATCHING_PARENT),
        ({"group": "networking.istio.io", "kind": "ServiceEntry"}, "NoMatchingParent"),
    ],
)
def test_parent_that_does_not_fit(world: World, parent: dict[str, Any], reason: str) -> None:
    found = only(world, route(parent=parent))
    assert found.accepted == reason
    assert found.accepted_message
    assert not found.ports


def test_headless_service_is_no_parent(world: World) -> None:
    headless = world.mesh.state.service("default/web")
    assert headless is not None
    world.mesh.put(msgspec.structs.replace(headless, vips=()))
    assert only(world, route()).accepted is AcceptedReason.NO_MATCHING_PARENT


def test_more_specific_kind_wins_and_the_other_conflicts(world: World) -> None:
    world.add(route("GRPCRoute", "grpc", parent={"port": 80}))
    assert only(world, route(parent={"port": 80})).accepted is AcceptedReason.CONFLICTED
    assert only(world, route(name="all")).ports == (81, 9000)


def test_consumer_and_producer_routes_do_not_conflict(world: World) -> None:
    world.add(route("GRPCRoute", "grpc"))
    found = only(world, route(namespace="other", parent={"namespace": "default"}))
    assert found.accepted is AcceptedReason.ACCEPTED


def test_consumer_tcp_route_is_not_accepted(world: World) -> None:
    found = only(world, route("TCPRoute", namespace="other", parent={"namespace": "default"}))
    assert found.accepted is AcceptedReason.UNSUPPORTED_VALUE


def test_waypoint_is_no_parent_and_other_gateways_are_left_to_others(world: World) -> None:
    for name, kind in (("wp", "istio-waypoint"), ("ingress", "istio")):
        world.add(
            {
                "kind": "Gateway",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"gatewayClassName": kind},
            }
        )
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
    refused = only(world, route(parent={**gateway, "name": "wp"}))
    assert refused.accepted is AcceptedReason.NOT_ALLOWED
    assert status(world, route(parent={**gateway, "name": "ingress"})).parents == ()


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ({"name": "web", "port": 80}, ResolvedReason.RESOLVED),
        ({"name": "absent", "port": 80}, ResolvedReason.NOT_FOUND),
        ({"name": "web", "port": 1}, ResolvedReason.NOT_FOUND),
        ({"name": "web"}, ResolvedReason.NOT_FOUND),
        ({"kind": "Bucket", "group": "x", "name": "b", "port": 80}, ResolvedReason.INVALID_KIND),
    ],
)
def test_backends_are_resolved(
    world: World, backend: dict[str, Any], reason: ResolvedReason
) -> None:
    found = only(world, route(backends=[backend]))
    assert (found.accepted, found.resolved) == (AcceptedReason.ACCEPTED, reason)


GRANT = {
    "kind": "ReferenceGrant",
    "metadata": {"name": "grant", "namespace": "other"},
    "spec": {
        "from": [
            {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "tenant"}
        ],
        "to": [{"group": "", "kind": "Service"}],
    },
}


def tenant_route() -> dict[str, Any]:
    backend = {"name": "elsewhere", "namespace": "other", "port": 80}
    return route(namespace="tenant", parent={"namespace": "tenant"}, backends=[backend])


def test_shared_waypoint_lends_its_identity_only_with_a_grant(world: World) -> None:
    world.service("web", namespace="tenant")  # its waypoint is in namespace default
    assert only(world, tenant_route()).resolved is ResolvedReason.NOT_PERMITTED
    world.add(GRANT)
    assert only(world, tenant_route()).resolved is ResolvedReason.RESOLVED


def test_own_waypoint_needs_no_grant(world: World) -> None:
    world.service("web", namespace="tenant", waypoint="tenant/waypoint")
    assert only(world, tenant_route()).resolved is ResolvedReason.RESOLVED


def test_consumer_route_may_refer_to_its_parent_without_a_grant(world: World) -> None:
    backend = {"name": "web", "namespace": "default", "port": 80}
    obj = route(namespace="other", parent={"namespace": "default"}, backends=[backend])
    assert only(world, obj).resolved is ResolvedReason.RESOLVED


def test_unsupported_rule_is_partially_invalid(world: World) -> None:
    obj = route()
    bad = {"filters": [{"type": "ExtensionRef", "extensionRef": {"name": "x"}}]}
    obj["spec"]["rules"].append(bad)
    found = only(world, obj)
    assert found.accepted is AcceptedReason.ACCEPTED
    assert "filters[0].type" in found.partially_invalid
    obj["spec"]["rules"] = [bad]
    assert only(world, obj).accepted is AcceptedReason.UNSUPPORTED_VALUE


def test_every_fault_is_a_problem(world: World) -> None:
    obj = route(parent={"name": "plain"}, hostnames=["a.example"], unknownField=1)
    messages = {p.field: p.message for p in status(world, obj).problems}
    assert set(messages) == {"spec.hostnames", "spec.unknownField", "spec.parentRefs[0]"}
    assert "no waypoint" in messages["spec.parentRefs[0]"]


def test_route_with_invalid_parents_is_one_problem(world: World) -> None:
    obj = route()
    obj["spec"]["parentRefs"] = "web"
    found = status(world, obj)
    assert found.parents == ()
    assert [p.reason for p in found.problems] == ["UnsupportedValue"]


@pytest.mark.parametrize("kind", ["HTTPRoute", "GRPCRoute", "TCPRoute"])
def test_route_with_invalid_rules_is_rejected_at_its_parents(world: World, kind: str) -> None:
    obj = route(kind, parent={"port": 9000})
    obj["spec"]["rules"] = "none"
    found = only(world, obj)
    assert found.accepted is AcceptedReason.UNSUPPORTED_VALUE
    assert "spec.rules" in found.accepted_message


def test_host_of_a_service_entry_is_parent_and_backend(world: World) -> None:
    web = world.mesh.state.service("default/web")
    assert web is not None
    host = "api.example.com"
    entry = msgspec.structs.replace(
        web, name=host, hostname=host, is_service_entry=True, vips=("10.97.0.1",)
    )
    world.mesh.put(entry)
    reference = {"group": "networking.istio.io", "kind": "Hostname", "name": host}
    found = only(world, route(parent=reference, backends=[{**reference, "port": 80}]))
    assert (found.accepted, found.resolved) == (AcceptedReason.ACCEPTED, ResolvedReason.RESOLVED)
    assert (found.service, found.ports) == (f"default/{host}", (80, 81, 9000))
    routes = world.compile().resources[TypeUrl.ROUTE]
    (only_route,) = routes[f"default/{host}|80"]["virtual_hosts"][0]["routes"]
    assert only_route["route"]["cluster"] == f"default/{host}|80"


def chains(world: World, port: int) -> set[str]:
    listener = world.compile().resources[TypeUrl.LISTENER]["waypoint"]
    prefix = f"default/web|{port}"
    return {c["name"] for c in listener["filter_chains"] if c["name"].startswith(prefix)}


def test_route_that_names_an_undeclared_port_declares_it(world: World) -> None:
    assert chains(world, 9000) == {"default/web|9000|http", "default/web|9000|tcp"}
    world.add(route())
    assert chains(world, 9000) == {"default/web|9000|http", "default/web|9000|tcp"}
    world.add(route(parent={"port": 9000}))
    assert chains(world, 9000) == {"default/web|9000"}
