# SPDX-License-Identifier: Apache-2.0
"""Which ports of a gateway's pods are public, as Gateways, ListenerSets and classes change."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import kube_objects as objects
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.view.gateway_port_index import MAX_PORTS

GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"


def listener(port: Any, protocol: Any = "HTTP") -> Object:
    return {"name": f"l{port}", "port": port, "protocol": protocol}


def gateway(
    *listeners: Any, gateway_class: str = "ztunnel", allowed: Object | None = None, **spec: Any
) -> Object:
    made = objects.gateway("edge")
    made["spec"] = {"gatewayClassName": gateway_class, "listeners": list(listeners), **spec}
    if allowed is not None:
        made["spec"]["allowedListeners"] = {"namespaces": allowed}
    return made


def listener_set(
    *listeners: Object, name: str = "more", namespace: str = "default", **parent: str
) -> Object:
    parent = {"name": "edge", **parent}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "ListenerSet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"parentRef": parent, "listeners": list(listeners)},
    }


def gateway_class(name: str, controller: str) -> Object:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": name},
        "spec": {"controllerName": controller},
    }


def pod(gateway_name: str = "edge", namespace: str = "default", **fields: Any) -> Object:
    labels = {GATEWAY_NAME: gateway_name, **objects.AMBIENT}
    return objects.pod("edge-1", "10.1.0.1", namespace=namespace, labels=labels, **fields)


def view_of(*objs: Object) -> ClusterView:
    view = ClusterView("td", "c")
    for obj in objs:
        view.upsert(obj)
    return view


def ports(view: ClusterView) -> list[str]:
    (found,) = view.snapshot().workloads
    return [f"{each.protocol}/{each.port}" for each in found.gateway_ports]


@pytest.mark.parametrize(
    ("listeners", "expected"),
    [
        ([listener(80)], ["TCP/80"]),
        ([listener(443, "HTTPS")], ["TCP/443", "UDP/443"]),
        ([listener(443, "TLS")], ["TCP/443"]),
        ([listener(53, "UDP"), listener(53, "TCP")], ["TCP/53", "UDP/53"]),
        ([listener(80), listener(80)], ["TCP/80"]),
        ([listener(port) for port in (15000, 15008, 15099, 15100)], ["TCP/15100"]),
        ([listener(80, "example.com/x"), listener(81, "HBONE"), listener(82, 7)], []),
        ([listener("x"), listener(0), listener(65536), listener(80)], ["TCP/80"]),
        (["x", listener(80)], []),
    ],
)
def test_ports_of_listeners(listeners: list[Any], expected: list[str]) -> None:
    assert ports(view_of(gateway(*listeners), pod())) == expected


@pytest.mark.parametrize("name", ["istio-waypoint", "ztunnel-waypoint", "nginx", ""])
def test_gateways_of_other_classes_have_no_public_port(name: str) -> None:
    assert ports(view_of(gateway(listener(80), gateway_class=name), pod())) == []


def test_gateways_of_a_class_that_another_controller_owns_are_not_ours() -> None:
    view = view_of(gateway(listener(80), gateway_class="istio"), pod())
    assert ports(view) == ["TCP/80"]
    view.upsert(gateway_class("istio", "istio.io/gateway-controller"))
    assert ports(view) == []
    view.upsert(gateway_class("istio", "ztunnel.dev/gateway-controller"))
    assert ports(view) == ["TCP/80"]
    view.upsert(gateway_class("istio", "ztunnel.dev.example.com/x"))
    assert ports(view) == []
    view.delete("GatewayClass", "", "istio")
    assert ports(view) == ["TCP/80"]


@pytest.mark.parametrize(
    "wrong",
    [
        pod("other"),
        pod(namespace="elsewhere"),  # a Gateway of the pod's own namespace only
        objects.pod("edge-1", "10.1.0.1", labels=dict(objects.AMBIENT)),
        pod(hostNetwork=True),
        objects.pod("edge-1", "10.1.0.1", labels={GATEWAY_NAME: "edge"}),  # not enrolled
    ],
)
def test_pods_that_do_not_belong_to_the_gateway_have_no_public_port(wrong: Object) -> None:
    assert ports(view_of(gateway(listener(80)), wrong)) == []


def test_ports_follow_the_gateway_and_its_removal() -> None:
    view = view_of(pod(), gateway(listener(80)))
    assert ports(view) == ["TCP/80"]
    view.drain()
    view.upsert(gateway(listener(8080)))
    assert [each.name for each in view.drain().workloads] == ["edge-1"]
    assert ports(view) == ["TCP/8080"]
    view.upsert(gateway(listener(8080), gateway_class=7))  # type: ignore[arg-type]
    assert ports(view) == []
    view.upsert(gateway(listener(8080)))
    view.delete("Gateway", "default", "edge")
    assert ports(view) == []


@pytest.mark.parametrize(
    ("allowed", "own", "other"),
    [
        (None, False, False),
        ({"from": "None"}, False, False),
        ({"from": "Same"}, True, False),
        ({"from": "All"}, True, True),
        ({"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}, False, True),
        ({"from": "Selector"}, False, False),
        ({"from": "Selector", "selector": "x"}, False, False),
        ({"from": "Everyone"}, False, False),
    ],
)
def test_listener_sets_count_only_if_the_gateway_admits_their_namespace(
    allowed: Object | None, own: bool, other: bool
) -> None:
    expected = ["TCP/80", *["TCP/81"] * own, *["TCP/82"] * other]
    objs = [
        gateway(listener(80), allowed=allowed),
        listener_set(listener(81)),
        _of_other(),
        objects.namespace("other", {"team": "a"}),
        pod(),
    ]
    assert ports(view_of(*objs)) == expected


def _of_other() -> Object:
    made = listener_set(listener(82), namespace="other")
    made["spec"]["parentRef"]["namespace"] = "default"
    return made


def test_listener_sets_follow_changes_of_parent_namespace_and_listeners() -> None:
    selector = {"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}
    view = view_of(pod(), gateway(listener(80), allowed=selector), _of_other())
    assert ports(view) == ["TCP/80"]
    view.upsert(objects.namespace("other", {"team": "a"}))
    assert ports(view) == ["TCP/80", "TCP/82"]
    view.upsert(objects.namespace("other", {"team": "b"}))
    assert ports(view) == ["TCP/80"]
    view.upsert(objects.namespace("other", {"team": "a"}))
    moved = _of_other()
    moved["spec"]["parentRef"]["name"] = "another"
    view.upsert(moved)
    assert ports(view) == ["TCP/80"]
    view.upsert(_of_other())
    assert ports(view) == ["TCP/80", "TCP/82"]
    invalid = _of_other()
    invalid["spec"]["parentRef"] = "edge"
    view.upsert(invalid)
    assert ports(view) == ["TCP/80"]
    view.upsert(_of_other())
    view.delete("ListenerSet", "other", "more")
    assert ports(view) == ["TCP/80"]


@pytest.mark.parametrize("parent", [{"kind": "Service"}, {"group": "example.com"}])
def test_listener_sets_of_other_parents_are_ignored(parent: dict[str, str]) -> None:
    objs = gateway(listener(80), allowed={"from": "All"}), listener_set(listener(81), **parent)
    assert ports(view_of(*objs, pod())) == ["TCP/80"]


def test_the_number_of_ports_is_bounded_and_the_gateways_own_come_first() -> None:
    sets = [
        listener_set(*(listener(1000 * number + each) for each in range(250)), name=f"s{number}")
        for number in range(1, 5)
    ]
    found = ports(view_of(gateway(listener(80), allowed={"from": "Same"}), *sets, pod()))
    assert (len(found), found[0]) == (MAX_PORTS, "TCP/80")


OBJECTS = [
    pod(),
    gateway(listener(80), listener(443, "HTTPS"), allowed={"from": "Same"}),
    listener_set(listener(81)),
    _of_other(),
    objects.namespace("other", {"team": "a"}),
    gateway_class("ztunnel", "ztunnel.dev/gateway-controller"),
]


@settings(max_examples=30, deadline=None)
@given(st.permutations(OBJECTS))
def test_the_order_of_objects_does_not_matter(order: list[Object]) -> None:
    assert ports(view_of(*order)) == ["TCP/80", "TCP/443", "UDP/443", "TCP/81"]


@pytest.mark.parametrize("removed", range(1, 3))
def test_removal_has_the_effect_of_never_having_been(removed: int) -> None:
    view = view_of(*OBJECTS)
    gone = OBJECTS[removed]
    view.delete(gone["kind"], "default", gone["metadata"]["name"])
    rest = [each for number, each in enumerate(OBJECTS) if number != removed]
    assert all(ports(view) == ports(view_of(*each)) for each in itertools.permutations(rest, 5))
