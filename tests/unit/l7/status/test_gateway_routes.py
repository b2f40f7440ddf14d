# SPDX-License-Identifier: Apache-2.0
"""Conditions of routes at parents that are ingress gateways or ListenerSets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.l7.status.test_ingress import HTTP, NAME, SPACE, gateway, listener_set, named, route
from tests.unit.mesh.builders import Mesh
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.objects import l7_object
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.status.backend_tls import backend_tls_entries, policy_users
from ztunnel.l7.status.entries import Entry
from ztunnel.l7.status.gateway_routes import ListenerViews, routed_services
from ztunnel.l7.status.routes import route_conditions, route_problems
from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import Service, ServicePort

ALLOWED = {"namespaces": {"from": "Same"}}


def service(name: str, protocol: str = "TCP", space: str = SPACE) -> Service:
    ports = (ServicePort(80, "web", protocol=protocol),)
    return Service(namespace=space, name=name, ports=ports)


def entries(obj: Object, *others: Object, services: tuple[Service, ...] = ()) -> list[Entry]:
    inputs, index = _inputs(obj, *others, services=services)
    return route_conditions(inputs, l7_object(obj), index, {}, ListenerViews())


def _inputs(*objects: Object, services: tuple[Service, ...]) -> tuple[Inputs, RouteIndex]:
    store, mesh, index = L7Store(), Mesh(), RouteIndex()
    for each in objects:
        store.put(l7_object(each))
    for found in services or (service("a"),):
        mesh.put(found)
    index.refresh(store)
    return Inputs(store, mesh.state, Settings()), index


def reasons(found: list[Entry]) -> list[dict[str, tuple[bool, str]]]:
    return [{c.type: (c.status, c.reason) for c in entry.conditions} for entry in found]


ACCEPTED, RESOLVED = (True, "Accepted"), (True, "ResolvedRefs")


def test_route_is_accepted_at_a_listener_and_its_reference_is_repeated() -> None:
    (entry,) = entries(route("one", parent={"sectionName": "http"}), gateway(HTTP))
    assert entry.ref == {"name": NAME, "namespace": SPACE, "sectionName": "http"}
    assert entry.of_ingress
    assert reasons([entry]) == [{"Accepted": ACCEPTED, "ResolvedRefs": RESOLVED}]


@pytest.mark.parametrize(
    ("parent", "kind", "reason"),
    [
        ({"sectionName": "other"}, "HTTPRoute", "NoMatchingParent"),
        ({"port": 81}, "HTTPRoute", "NoMatchingParent"),
        ({"sectionName": "http"}, "TCPRoute", "NotAllowedByListeners"),
        ({"sectionName": "http"}, "UDPRoute", "NotAllowedByListeners"),
    ],
)
def test_reason_of_a_route_that_attaches_to_no_listener(
    parent: dict[str, Any], kind: str, reason: str
) -> None:
    protocol = "UDP" if kind == "UDPRoute" else "TCP"
    found = entries(route("one", kind, parent), gateway(HTTP), services=(service("a", protocol),))
    assert reasons(found) == [{"Accepted": (False, reason), "ResolvedRefs": RESOLVED}]


def test_hostname_that_no_listener_serves() -> None:
    obj = route("one")
    obj["spec"]["hostnames"] = ["other.example"]
    found = entries(obj, gateway(named("a", "a.example")))
    assert reasons(found)[0]["Accepted"] == (False, "NoMatchingListenerHostname")


def test_route_of_another_namespace_is_not_allowed_by_default() -> None:
    obj = route("one")
    obj["metadata"]["namespace"] = "elsewhere"
    found = entries(obj, gateway(HTTP), services=(service("a", space="elsewhere"),))
    assert reasons(found) == [
        {"Accepted": (False, "NotAllowedByListeners"), "ResolvedRefs": RESOLVED}
    ]


def test_parents_are_judged_independently() -> None:
    obj = route("one", parent={"sectionName": "of-set"})
    obj["spec"]["parentRefs"].append(
        {"kind": "ListenerSet", "name": "set", "sectionName": "of-set"}
    )
    found = entries(
        obj,
        gateway(named("own", "own.example"), allowedListeners=ALLOWED),
        listener_set("set", named("of-set", "set.example")),
    )
    assert [each["Accepted"] for each in reasons(found)] == [(False, "NoMatchingParent"), ACCEPTED]


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ({"name": "missing", "port": 80}, "BackendNotFound"),
        ({"name": "a", "port": 80, "kind": "Bucket"}, "InvalidKind"),
        ({"name": "b", "port": 80, "namespace": "other"}, "RefNotPermitted"),
        ({"name": "missing", "port": 80, "namespace": "other"}, "RefNotPermitted"),
    ],
)
def test_unresolved_backend_leaves_the_route_accepted(ref: dict[str, Any], reason: str) -> None:
    obj = route("one")
    obj["spec"]["rules"][0]["backendRefs"] = [ref]
    found = entries(obj, gateway(HTTP), services=(service("a"), service("b", space="other")))
    assert reasons(found) == [{"Accepted": ACCEPTED, "ResolvedRefs": (False, reason)}]


def test_gateway_of_another_controller_gets_no_entry() -> None:
    foreign = gateway(HTTP)
    foreign["spec"]["gatewayClassName"] = "cilium"
    assert entries(route("one"), foreign) == []
    istiod = {
        "kind": "GatewayClass",
        "metadata": {"name": "istio"},
        "spec": {"controllerName": "istio.io/gateway-controller"},
    }
    foreign["spec"]["gatewayClassName"] = "istio"
    assert entries(route("one"), foreign, istiod) == []


def test_udp_route_needs_a_udp_port_of_its_backend() -> None:
    udp = {"name": "dns", "port": 53, "protocol": "UDP"}
    found = entries(route("one", "UDPRoute"), gateway(udp), services=(service("a", "UDP"),))
    assert reasons(found) == [{"Accepted": ACCEPTED, "ResolvedRefs": RESOLVED}]
    found = entries(route("one", "UDPRoute"), gateway(udp), services=(service("a"),))
    assert reasons(found)[0]["ResolvedRefs"] == (False, "BackendNotFound")


def test_udp_route_of_a_service_has_no_effect() -> None:
    obj = route("one", "UDPRoute", {"kind": "Service", "group": "", "name": "a"})
    found = entries(obj, services=(service("a", "UDP"),))
    assert reasons(found) == [{"Accepted": (False, "UnsupportedValue")}]


def test_events_name_the_parent_and_what_is_wrong() -> None:
    obj = route("one", parent={"sectionName": "other"})
    inputs, index = _inputs(obj, gateway(HTTP), services=())
    (text,) = route_problems(inputs, l7_object(obj), index, ListenerViews())
    assert text == f"spec.parentRefs[0]: Gateway {SPACE}/{NAME} has no listener other"


def policy(name: str, target: str, section: str = "", created: str = "") -> Object:
    ref = {"group": "", "kind": "Service", "name": target}
    return {
        "kind": "BackendTLSPolicy",
        "metadata": {"name": name, "namespace": SPACE, "creationTimestamp": created},
        "spec": {"targetRefs": [ref | ({"sectionName": section} if section else {})]},
    }


def ancestors(obj: Object, *others: Object) -> list[Entry]:
    inputs, index = _inputs(obj, *others, services=())
    found = l7_object(obj)
    users = policy_users(inputs, found, routed_services(inputs, index.routes, ListenerViews()))
    return backend_tls_entries(inputs, found, users, ())


def test_ancestors_of_a_policy_are_the_gateways_that_route_to_its_service() -> None:
    obj = policy("tls", "a")
    assert ancestors(obj, gateway(HTTP)) == []
    (entry,) = ancestors(obj, gateway(HTTP), route("one"))
    assert (entry.ref["namespace"], entry.ref["name"]) == (SPACE, NAME)
    assert entry.of_ingress
    assert reasons([entry]) == [{"Accepted": ACCEPTED, "ResolvedRefs": RESOLVED}]
    assert ancestors(obj, gateway(HTTP), route("one", parent={"sectionName": "no"})) == []


@pytest.mark.parametrize("section", ["", "web"])
def test_younger_policy_with_the_same_targets_is_conflicted(section: str) -> None:
    others = gateway(HTTP), route("one")
    old = policy("b", "a", section, "2026-11-30T18:00:00Z")
    young = policy("a", "a", section, "2026-11-30T18:00:01Z")
    assert reasons(ancestors(old, young, *others))[0]["Accepted"] == ACCEPTED
    assert reasons(ancestors(young, old, *others))[0]["Accepted"] == (False, "Conflicted")


def test_policies_for_a_port_and_for_all_ports_do_not_conflict() -> None:
    others = gateway(HTTP), route("one")
    whole, port = policy("a", "a"), policy("b", "a", "web")
    for one, other in ((whole, port), (port, whole)):
        assert reasons(ancestors(one, other, *others))[0]["Accepted"] == ACCEPTED
