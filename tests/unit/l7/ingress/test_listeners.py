# SPDX-License-Identifier: Apache-2.0
"""Effective listeners: conflicts, ListenerSets, kinds, references."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.waypoint.world import World
from ztunnel.l7.ingress.listeners import (
    EffectiveListener,
    ListenerAccepted,
    ListenerConflict,
    ListenerResolved,
    effective_listeners,
    is_ingress_gateway,
)
from ztunnel.l7.names import certificate_id

NO, HOST, PROTO = ListenerConflict.NONE, ListenerConflict.HOSTNAME, ListenerConflict.PROTOCOL
CERTIFICATE = f'{{"{certificate_id("Secret", "default", "web")}.crt": "00"}}'


def gateway(*listeners: dict[str, Any], **spec: Any) -> dict[str, Any]:
    annotations = {"ztunnel.dev/gateway-certificates": CERTIFICATE}
    return {
        "kind": "Gateway",
        "metadata": {"name": "edge", "namespace": "default", "annotations": annotations},
        "spec": {"gatewayClassName": "ztunnel", "listeners": list(listeners), **spec},
    }


def listener(name: str, protocol: Any = "HTTP", port: Any = 80, **more: Any) -> dict[str, Any]:
    return {"name": name, "port": port, "protocol": protocol, **more}


def listener_set(name: str, *listeners: dict[str, Any], created: str = "") -> dict[str, Any]:
    return {
        "kind": "ListenerSet",
        "metadata": {"name": name, "namespace": "team", "creationTimestamp": created},
        "spec": {"parentRef": {"name": "edge", "namespace": "default"}, "listeners": listeners},
    }


def effective(*objects: dict[str, Any]) -> dict[str, EffectiveListener]:
    world = World()
    for each in objects:
        world.add(each)
    found = world.store.get("Gateway", "default", "edge")
    assert found is not None
    listeners = effective_listeners(world.store, found)
    return {f"{e.listener.owner.name}/{e.listener.name}": e for e in listeners}


TLS: dict[str, Any] = {"tls": {"certificateRefs": [{"name": "web"}]}}
PASSTHROUGH: dict[str, Any] = {"tls": {"mode": "Passthrough"}}


@pytest.mark.parametrize(
    ("listeners", "expected"),
    [
        ([listener("a"), listener("b", hostname="x.org")], [NO, NO]),
        ([listener("a", hostname="x.org"), listener("b", hostname="x.org")], [HOST, HOST]),
        ([listener("a"), listener("b"), listener("c", port=81)], [HOST, HOST, NO]),
        ([listener("a"), listener("b", "HTTPS", hostname="x.org", **TLS)], [PROTO, PROTO]),
        (
            [listener("a", "HTTPS", hostname="x.org", **TLS), listener("b", "TLS", **PASSTHROUGH)],
            [NO, NO],
        ),
        ([listener("a", "TCP"), listener("b", "UDP")], [NO, NO]),
        ([listener("a", "TCP"), listener("b", "TCP", hostname="x.org")], [HOST, HOST]),
        # an invalid listener conflicts with none
        ([listener("a"), listener("b", "HTTPS")], [NO, NO]),
    ],
)
def test_listeners_of_a_gateway_that_conflict_are_all_conflicted(
    listeners: list[dict[str, Any]], expected: list[ListenerConflict]
) -> None:
    found = effective(gateway(*listeners))
    assert [each.conflicted for each in found.values()] == expected
    assert all(
        not each.is_usable
        for each in found.values()
        if each.conflicted is not ListenerConflict.NONE
    )


def test_listener_sets_come_after_the_gateway_and_the_older_one_first() -> None:
    found = effective(
        listener_set("new", listener("a", port=81), created="2026-02-01T00:00:00Z"),
        listener_set("old", listener("a", port=81), listener("b"), created="2026-01-01T00:00:00Z"),
        gateway(listener("a"), allowedListeners={"namespaces": {"from": "All"}}),
    )
    conflicts = {name: each.conflicted for name, each in found.items()}
    assert conflicts == {"edge/a": NO, "old/a": NO, "old/b": HOST, "new/a": HOST}


@pytest.mark.parametrize(
    ("allowed", "is_admitted"),
    [
        (None, False),
        ({"from": "None"}, False),
        ({"from": "Same"}, False),
        ({"from": "All"}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"edge": "yes"}}}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"edge": "no"}}}, False),
        (
            {
                "from": "Selector",
                "selector": {"matchLabels": {"kubernetes.io/metadata.name": "team"}},
            },
            True,
        ),
        ({"from": "Selector"}, False),
        ({"from": "Selector", "selector": "invalid"}, False),
        ({"from": "Everyone"}, False),
    ],
)
def test_gateway_admits_listener_sets_of_namespaces(
    allowed: dict[str, Any] | None, is_admitted: bool
) -> None:
    spec = {} if allowed is None else {"allowedListeners": {"namespaces": allowed}}
    found = effective(
        {"kind": "Namespace", "metadata": {"name": "team", "labels": {"edge": "yes"}}},
        gateway(listener("a"), **spec),
        listener_set("mine", listener("b", port=81)),
    )
    assert ("mine/b" in found) == is_admitted


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (listener("a", "HBONE"), ListenerAccepted.UNSUPPORTED_PROTOCOL),
        (listener("a", port=15008), ListenerAccepted.PORT_UNAVAILABLE),
        (listener("a", "HTTPS"), ListenerAccepted.INVALID),
        (listener("a", **TLS), ListenerAccepted.INVALID),
        (listener("a", "HTTPS", **PASSTHROUGH), ListenerAccepted.INVALID),
        (listener("a", hostname="*"), ListenerAccepted.INVALID),
        (listener("a", hostname="a b"), ListenerAccepted.INVALID),
        (listener("a", port="http"), ListenerAccepted.INVALID),
        (listener("a", surprise=1), ListenerAccepted.INVALID),
        (listener("a", allowedRoutes=[]), ListenerAccepted.INVALID),
        ({"name": 3}, ListenerAccepted.INVALID),
    ],
)
def test_invalid_listener_affects_no_other(value: dict[str, Any], expected: Any) -> None:
    invalid, valid = effective(gateway(value, listener("b"))).values()
    assert invalid.accepted is expected
    assert not invalid.is_usable
    assert valid.is_usable


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ({"name": "web"}, ListenerResolved.RESOLVED),
        ({"name": "other"}, ListenerResolved.INVALID_CERTIFICATE),
        ({"name": "web", "kind": "ConfigMap"}, ListenerResolved.INVALID_CERTIFICATE),
        ({"name": "web", "group": "x"}, ListenerResolved.INVALID_CERTIFICATE),
        ({"name": "web", "namespace": "team"}, ListenerResolved.NOT_PERMITTED),
    ],
)
def test_listener_needs_a_valid_certificate(ref: dict[str, str], expected: Any) -> None:
    (found,) = effective(gateway(listener("a", "HTTPS", tls={"certificateRefs": [ref]}))).values()
    assert found.resolved is expected
    assert found.is_usable == (expected is ListenerResolved.RESOLVED)


def test_valid_certificate_serves_besides_an_invalid_one() -> None:
    tls = {"certificateRefs": [{"name": "other"}, {"name": "web"}]}
    (found,) = effective(gateway(listener("a", "HTTPS", tls=tls))).values()
    assert found.is_usable
    assert found.resolved is ListenerResolved.INVALID_CERTIFICATE
    assert [each.name for each in found.certificates] == ["web"]


def test_unknown_kinds_are_reported_and_known_ones_serve() -> None:
    kinds = [{"kind": "HTTPRoute"}, {"kind": "TCPRoute"}, {"group": "x", "kind": "HTTPRoute"}]
    (found,) = effective(gateway(listener("a", allowedRoutes={"kinds": kinds}))).values()
    assert found.resolved is ListenerResolved.INVALID_KINDS
    assert [each.kind for each in found.kinds] == ["HTTPRoute"]


@pytest.mark.parametrize(
    ("class_name", "controller", "expected"),
    [
        ("ztunnel", None, True),
        ("istio", None, True),
        ("istio", "ztunnel.dev/gateway-controller", True),
        ("istio", "istio.io/gateway-controller", False),
        ("istio-waypoint", None, False),
        ("nginx", None, False),
        (7, None, False),
    ],
)
def test_class_of_another_controller_is_left_to_it(
    class_name: Any, controller: str | None, expected: bool
) -> None:
    world = World().add({**gateway(), "spec": {"gatewayClassName": class_name}})
    if controller is not None:
        spec = {"controllerName": controller}
        world.add({"kind": "GatewayClass", "metadata": {"name": class_name}, "spec": spec})
    found = world.store.get("Gateway", "default", "edge")
    assert is_ingress_gateway(world.store, found) is expected


def test_problem_of_a_listener_is_reported_once() -> None:
    world = World()
    world.add(gateway(listener("a", surprise=1), allowedListeners={"namespaces": {"from": "All"}}))
    world.add(listener_set("mine", listener("b", port="http"), listener("c", port=15001)))
    found = [(each.kind, str(each)) for each in world.compile("default/edge").problems]
    assert [kind for kind, _ in found] == ["Gateway", "ListenerSet", "ListenerSet"]
    assert "spec.listeners[0].surprise: no such field" in found[0][1]
    assert "spec.listeners[1].port: 15000 to 15099 belong to the mesh" in found[1][1]
    assert "spec.listeners[0].port is 'http'" in found[2][1]
