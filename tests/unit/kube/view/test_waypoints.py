# SPDX-License-Identifier: Apache-2.0
"""Which waypoint services and workloads get, as their labels and the Gateways change."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import kube_objects as objects
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.view.cluster_view import ClusterView

USE = "istio.io/use-waypoint"
USE_NAMESPACE = "istio.io/use-waypoint-namespace"
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
MISSING = "waypoint default/waypoint does not exist"


def labelled(obj: Object, **labels: str) -> Object:
    obj["metadata"]["labels"] = {
        {"use": USE, "use_namespace": USE_NAMESPACE, "gateway": GATEWAY_NAME}[name]: value
        for name, value in labels.items()
    }
    return obj


def namespace(name: str = "default", **labels: str) -> Object:
    return labelled(objects.namespace(name), **labels)


def service(name: str = "web", namespace: str = "default", **labels: str) -> Object:
    return labelled(objects.service(name, "10.96.0.1", namespace=namespace), **labels)


def pod(name: str = "web-1", namespace: str = "default", **labels: str) -> Object:
    return labelled(objects.pod(name, "10.1.0.1", namespace=namespace), **labels)


def entry(**labels: str) -> Object:
    spec = {
        "hosts": ["api.example.com"],
        "addresses": ["10.200.0.1"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "STATIC",
        "endpoints": [{"address": "192.0.2.1"}],
    }
    return labelled(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {"name": "api", "namespace": "default"},
            "spec": spec,
        },
        **labels,
    )


def resolved(view: ClusterView) -> dict[str, tuple[str, str]]:
    """Name → waypoint and error, of all services and workloads."""
    change = view.snapshot()
    values: tuple[Any, ...] = (*change.services, *change.workloads)
    return {each.name: (each.waypoint, each.waypoint_error) for each in values}


def view_of(*objs: Object) -> ClusterView:
    view = ClusterView("td", "c")
    for obj in objs:
        view.upsert(obj)
    return view


def waypoints(*objs: Object) -> dict[str, str]:
    return {name: waypoint for name, (waypoint, _) in resolved(view_of(*objs)).items()}


def test_namespace_label_covers_services_and_not_workloads_by_default() -> None:
    objs = (namespace(use="waypoint"), objects.gateway(), service(), pod(), entry())
    assert waypoints(*objs) == {
        "web": "default/waypoint",
        "web-1": "",
        "api.example.com": "default/waypoint",
    }


@pytest.mark.parametrize(
    ("traffic", "of_service", "of_pod"),
    [
        ("service", "default/waypoint", ""),
        ("workload", "", "default/waypoint"),
        ("all", "default/waypoint", "default/waypoint"),
        ("none", "", ""),
    ],
)
def test_waypoint_for_selects_the_traffic(traffic: str, of_service: str, of_pod: str) -> None:
    found = waypoints(namespace(use="waypoint"), objects.gateway(traffic=traffic), service(), pod())
    assert found == {"web": of_service, "web-1": of_pod}


def test_own_label_has_precedence_over_the_namespace() -> None:
    found = waypoints(
        namespace(use="waypoint"),
        objects.gateway(),
        objects.gateway("other", namespace="infra", allowed={"from": "All"}),
        service("opted-out", use="none"),
        service("elsewhere", use="other", use_namespace="infra"),
        service("inherits"),
    )
    assert found == {
        "opted-out": "",
        "elsewhere": "infra/other",
        "inherits": "default/waypoint",
    }


def by_ingress(*objs: Object) -> dict[str, bool]:
    services = view_of(*objs).snapshot().services
    return {each.name: each.ingress_use_waypoint for each in services}


def ingress(obj: Object, value: str) -> Object:
    obj["metadata"].setdefault("labels", {})["istio.io/ingress-use-waypoint"] = value
    return obj


@pytest.mark.parametrize(
    ("of_namespace", "own", "expected"),
    [
        ("", "true", True),
        ("", "True", True),
        ("", "yes", False),
        ("", "", False),
        ("true", None, True),
        ("true", "false", False),
        ("false", "true", True),
        ("", None, False),
    ],
)
def test_ingress_use_waypoint_of_the_service_has_precedence_over_the_namespace(
    of_namespace: str, own: str | None, expected: bool
) -> None:
    objs = [ingress(namespace(use="waypoint"), of_namespace), objects.gateway()]
    objs += [each if own is None else ingress(each, own) for each in (service(), entry())]
    assert by_ingress(*objs) == {"web": expected, "api.example.com": expected}


def test_ingress_use_waypoint_needs_a_waypoint_and_includes_one_that_cannot_be_used() -> None:
    assert by_ingress(namespace(), ingress(service(), "true")) == {"web": False}
    missing = view_of(namespace(), ingress(service(use="waypoint"), "true")).snapshot().services[0]
    assert missing.ingress_use_waypoint
    assert missing.waypoint_error == MISSING


def test_ingress_use_waypoint_follows_the_labels_of_the_namespace() -> None:
    view = view_of(ingress(namespace(use="waypoint"), "true"), objects.gateway(), service())
    assert view.drain().services[0].ingress_use_waypoint
    view.upsert(namespace(use="waypoint"))
    assert not view.drain().services[0].ingress_use_waypoint


def test_missing_waypoint_stays_set_with_an_error() -> None:
    view = view_of(namespace(use="waypoint"), service(), pod("own", use="waypoint"), pod("plain"))
    assert resolved(view) == {
        "web": ("default/waypoint", MISSING),
        "own": ("default/waypoint", MISSING),
        "plain": ("", ""),  # the default traffic type is `service`
    }


@pytest.mark.parametrize(
    ("allowed", "is_admitted"),
    [
        (None, False),
        ({"from": "Same"}, False),
        ({"from": "All"}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"team": "b"}}}, False),
    ],
)
def test_waypoint_of_another_namespace_must_admit_it(
    allowed: Object | None, is_admitted: bool
) -> None:
    home = namespace()
    home["metadata"]["labels"] = {"team": "a"}
    shared = objects.gateway("shared", namespace="infra", allowed=allowed)
    found = resolved(view_of(home, shared, service(use="shared", use_namespace="infra")))
    waypoint, error = found["web"]
    assert waypoint == "infra/shared"
    assert ("does not admit objects of namespace default" in error) is not is_admitted


def test_gateway_pods_and_services_ignore_the_namespace_label() -> None:
    view = view_of(
        namespace(use="waypoint"),
        objects.gateway(traffic="all"),
        service("waypoint", gateway="waypoint"),
        pod("waypoint-1", gateway="waypoint"),
        pod("self", gateway="waypoint", use="waypoint"),
    )
    assert {name: waypoint for name, (waypoint, _) in resolved(view).items()} == {
        "waypoint": "",
        "waypoint-1": "",
        "self": "",
    }
    gateways = {each.name: each.gateway for each in view.snapshot().workloads}
    assert gateways == {"waypoint-1": "default/waypoint", "self": "default/waypoint"}


def test_change_of_a_gateway_resolves_only_its_users_again() -> None:
    others = (objects.service("other", namespace="b"), pod("other-1", namespace="b"))
    view = view_of(namespace(use="waypoint"), service(), pod(), *others)
    view.drain()
    view.upsert(objects.gateway(traffic="all"))
    change = view.drain()
    assert [each.name for each in change.services] == ["web"]
    assert change.services[0].waypoint_error == ""
    assert [each.name for each in change.workloads] == ["web-1"]
    view.delete("Gateway", "default", "waypoint")
    assert [each.waypoint_error for each in view.drain().services] == [MISSING]


def gateway_class(traffic: str = "") -> Object:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {
            "name": "istio-waypoint",
            "labels": {"istio.io/waypoint-for": traffic} if traffic else {},
        },
        "spec": {"controllerName": "istio.io/mesh-controller"},
    }


def test_class_of_the_gateway_decides_if_the_gateway_does_not() -> None:
    view = view_of(gateway_class("workload"), objects.gateway(), namespace(use="waypoint"))
    view.upsert(service())
    view.upsert(pod())

    def of_pod_and_service() -> tuple[str, str]:
        found = resolved(view)
        return found["web-1"][0], found["web"][0]

    assert of_pod_and_service() == ("default/waypoint", "")
    view.upsert(gateway_class("all"))
    assert of_pod_and_service() == ("default/waypoint", "default/waypoint")
    view.upsert(objects.gateway(traffic="service"))
    assert of_pod_and_service() == ("", "default/waypoint")
    view.upsert(objects.gateway())
    view.delete("GatewayClass", "", "istio-waypoint")
    assert of_pod_and_service() == ("", "default/waypoint")
    view.upsert(gateway_class("everything"))
    assert "want service, workload, all or none" in view.errors()["GatewayClass istio-waypoint"]
    assert of_pod_and_service() == ("", "default/waypoint")


def test_invalid_gateway_keeps_its_previous_state_and_is_reported() -> None:
    view = view_of(objects.gateway(), service(use="waypoint"))
    view.upsert(objects.gateway(traffic="everything"))
    assert resolved(view)["web"] == ("default/waypoint", "")
    assert "want service, workload, all or none" in view.errors()["Gateway default/waypoint"]


CHANGES = (
    namespace(),
    namespace(use="waypoint"),
    namespace(use="none"),
    service(),
    service(use="waypoint"),
    service(use="none"),
    pod(),
    pod(use="waypoint"),
    pod(gateway="waypoint"),
    entry(),
    entry(use="waypoint"),
    objects.gateway(),
    objects.gateway(traffic="all"),
    objects.gateway(traffic="workload"),
    objects.gateway(allowed={"from": "All"}),
    gateway_class(),
    gateway_class("all"),
    gateway_class("none"),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.booleans()), max_size=12))
def test_changes_in_any_order_lead_to_the_state_of_a_complete_list(
    changes: list[tuple[Object, bool]],
) -> None:
    view = ClusterView("td", "c")
    final: dict[tuple[str, str], Object] = {}
    for obj, is_deleted in changes:
        kind, metadata = obj["kind"], obj["metadata"]
        if is_deleted:
            view.delete(kind, metadata.get("namespace", ""), metadata["name"])
            final.pop((kind, metadata["name"]), None)
        else:
            view.upsert(obj)
            final[kind, metadata["name"]] = obj
        view.drain()
    for order in itertools.islice(itertools.permutations(final.values()), 3):
        assert resolved(view) == resolved(view_of(*order))


@pytest.mark.parametrize(
    ("port", "protocol"),
    [
        ({"name": "http-web"}, "http"),
        ({"name": "GRPC"}, "grpc"),
        ({"name": "grpc-web-ui"}, "grpc-web"),
        ({"name": "grpc-webby"}, "grpc"),
        ({"name": "web"}, ""),
        ({"name": "https-x", "appProtocol": "kubernetes.io/H2C"}, "kubernetes.io/h2c"),
        ({"name": ""}, ""),
    ],
)
def test_protocol_of_a_port(port: dict[str, str], protocol: str) -> None:
    obj = objects.service(ports=[{"port": 80, **port}])
    (found,) = view_of(obj).snapshot().services
    assert [each.app_protocol for each in found.ports] == [protocol]


def test_protocol_of_a_service_entry_port() -> None:
    (found,) = view_of(entry()).snapshot().services
    assert [each.app_protocol for each in found.ports] == ["http"]


def test_attached_waypoint_of_a_local_pod_revokes_bypass_entries() -> None:
    """`affects_authorization` revokes all entries before the change applies."""
    view = ClusterView("td", "c", node="node1")
    view.upsert(objects.gateway(traffic="workload"))
    view.upsert(pod())
    view.drain()
    view.upsert(namespace(use="waypoint"))
    change = view.drain()
    assert change.affects_authorization
    assert [each.waypoint for each in change.local_pods] == ["default/waypoint"]
