# SPDX-License-Identifier: Apache-2.0
"""The cluster view: incremental changes lead to the same state as a complete list."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import kube_objects as objects
from tests.support.kube_objects import AMBIENT
from ztunnel.kube.objects import translation
from ztunnel.kube.objects.fields import Object, ObjectKey, key_of, make_key
from ztunnel.kube.objects.translation import SERVICE_LABEL
from ztunnel.kube.view.cluster_view import ClusterView, ViewChange
from ztunnel.mesh.model import SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.policy.match_terms import AuthzRequest
from ztunnel.mesh.policy.model import Action, AuthorizationPolicy, Rule, Selection
from ztunnel.mesh.selectors import parse
from ztunnel.mesh.state import MeshState


def make(*objs: Object) -> ClusterView:
    mirror = ClusterView("td", "c")
    for obj in objs:
        mirror.upsert(obj)
    return mirror


def names(change: ViewChange) -> list[str]:
    return [w.name for w in change.workloads] + [s.name for s in change.services]


def test_drain_returns_each_difference_once() -> None:
    mirror = make(objects.pod("a", "10.0.0.1"))
    assert names(mirror.drain()) == ["a"]
    assert not mirror.drain()


def test_unchanged_object_is_not_a_change() -> None:
    mirror = make(objects.pod("a", "10.0.0.1"), objects.service("s", "10.96.0.1"))
    mirror.drain()
    mirror.upsert(objects.pod("a", "10.0.0.1"))
    mirror.upsert(objects.service("s", "10.96.0.1"))
    assert not mirror.drain()


def test_object_added_and_removed_between_drains_is_no_change() -> None:
    mirror = make(objects.pod("a", "10.0.0.1"))
    mirror.delete("Pod", "default", "a")
    assert not mirror.drain()


def test_object_removed_and_added_back_is_no_change() -> None:
    mirror = make(objects.pod("a", "10.0.0.1"))
    mirror.drain()
    mirror.delete("Pod", "default", "a")
    mirror.upsert(objects.pod("a", "10.0.0.1"))
    assert not mirror.drain()


def test_namespace_label_enrolls_only_its_pods() -> None:
    mirror = make(
        objects.namespace("x"),
        objects.pod("a", "10.0.0.1", namespace="x"),
        objects.pod("b", "10.0.0.2", namespace="y"),
    )
    mirror.drain()
    mirror.upsert(objects.namespace("x", AMBIENT))
    change = mirror.drain()
    assert [(w.name, w.protocol) for w in change.workloads] == [("a", TunnelProtocol.HBONE)]


def test_deleted_namespace_unenrolls_its_pods() -> None:
    mirror = make(objects.namespace("x", AMBIENT), objects.pod("a", "10.0.0.1", namespace="x"))
    mirror.delete("Namespace", "", "x")
    assert mirror.snapshot().workloads[0].protocol is TunnelProtocol.NONE


def test_namespace_may_come_after_its_pods() -> None:
    mirror = make(objects.pod("a", "10.0.0.1"), objects.namespace("default", AMBIENT))
    assert mirror.snapshot().workloads[0].protocol is TunnelProtocol.HBONE


def test_change_updates_only_dependents(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = make(
        *(objects.service(f"s{n}", f"10.96.0.{n}") for n in range(50)),
        *(objects.pod(f"p{n}", f"10.0.0.{n}", namespace=f"ns{n % 10}") for n in range(50)),
    )
    mirror.drain()
    derived: list[str] = []
    make_workload, make_service = translation.workload, translation.service

    def workload(pod: translation.Pod, *rest: Any) -> Any:
        derived.append(pod.name)
        return make_workload(pod, *rest)

    def service(spec: translation.ServiceSpec, *rest: Any) -> Any:
        derived.append(spec.name)
        return make_service(spec, *rest)

    monkeypatch.setattr(translation, "workload", workload)
    monkeypatch.setattr(translation, "service", service)
    mirror.upsert(objects.endpoint_slice("e", "s7", objects.endpoint("10.0.0.1")))
    mirror.upsert(objects.endpoint_slice("f", "s7", objects.endpoint("10.0.0.2")))
    mirror.drain()
    assert derived == ["s7"]
    mirror.upsert(objects.namespace("ns3", AMBIENT))
    assert sorted(derived[1:]) == ["p13", "p23", "p3", "p33", "p43"]


def test_recreated_pod_of_the_same_name_is_a_change_of_pod_uid() -> None:
    mirror = make(objects.pod("a", "10.0.0.1", uid="old"))
    mirror.drain()
    mirror.upsert(objects.pod("a", "10.0.0.1", uid="new"))
    assert [w.pod_uid for w in mirror.drain().workloads] == ["new"]
    assert mirror.workload_by_pod_uid("old") is None
    found = mirror.workload_by_pod_uid("new")
    assert found is not None
    assert found.name == "a"


def test_finished_pod_is_removed() -> None:
    mirror = make(objects.pod("a", "10.0.0.1"))
    mirror.drain()
    mirror.upsert(objects.pod("a", "10.0.0.1", phase="Succeeded"))
    assert mirror.drain() == ViewChange(removed_workloads=("c//Pod/default/a",), revision=2)
    assert mirror.pods_on("node1") == []


@pytest.mark.parametrize("drain_between", [False, True])
@pytest.mark.parametrize("old_goes_first", [False, True])
def test_reused_address_belongs_to_the_new_pod(old_goes_first: bool, drain_between: bool) -> None:
    mirror, state = make(objects.pod("old", "10.0.0.1")), MeshState()
    state.apply(mirror.drain())
    steps = [objects.pod("old", "10.0.0.1", phase="Failed"), objects.pod("new", "10.0.0.1")]
    for obj in steps if old_goes_first else reversed(steps):
        mirror.upsert(obj)
        if drain_between:
            state.apply(mirror.drain())
    state.apply(mirror.drain())
    found = state.workload_at("10.0.0.1")
    assert found is not None
    assert found.name == "new"


def test_latest_claim_to_address_is_last_in_delta_and_snapshot() -> None:
    mirror = make(objects.pod("z", "10.0.0.2"), objects.pod("a", "10.0.0.1"))
    mirror.upsert(objects.pod("z", "10.0.0.1"))
    assert names(mirror.snapshot()) == ["a", "z"]
    assert names(mirror.drain()) == ["a", "z"]


def test_pods_can_swap_addresses() -> None:
    mirror, state = make(objects.pod("a", "10.0.0.1"), objects.pod("b", "10.0.0.2")), MeshState()
    state.apply(mirror.drain())
    mirror.upsert(objects.pod("a", "10.0.0.2"))
    mirror.upsert(objects.pod("b", "10.0.0.1"))
    state.apply(mirror.drain())
    found = [state.workload_at(ip) for ip in ("10.0.0.1", "10.0.0.2")]
    assert [w and w.name for w in found] == ["b", "a"]


def test_slice_that_moves_to_another_service() -> None:
    mirror = make(
        objects.service("s", "10.96.0.1"),
        objects.service("t", "10.96.0.2"),
        objects.endpoint_slice("e", "s", objects.endpoint("10.0.0.1")),
    )
    mirror.drain()
    mirror.upsert(objects.endpoint_slice("e", "t", objects.endpoint("10.0.0.1")))
    assert [(s.name, len(s.endpoints)) for s in mirror.drain().services] == [("s", 0), ("t", 1)]


def test_slice_may_come_before_its_service() -> None:
    mirror = make(objects.endpoint_slice("e", "s", objects.endpoint("10.0.0.1")))
    assert not mirror.drain()
    mirror.upsert(objects.service("s", "10.96.0.1"))
    assert len(mirror.drain().services[0].endpoints) == 1


def test_invalid_object_keeps_last_valid_state_and_is_reported() -> None:
    mirror = make(objects.pod("a", "10.0.0.1", labels=AMBIENT))
    before = mirror.snapshot()
    mirror.upsert(objects.pod("a", "nonsense"))
    assert mirror.snapshot() == before
    assert "podIPs" in mirror.errors()["Pod default/a"]
    mirror.upsert(objects.pod("a", "10.0.0.1"))
    assert mirror.errors() == {}


def test_error_is_removed_with_its_object() -> None:
    mirror = make(objects.pod("a", "nonsense"))
    mirror.delete("Pod", "default", "a")
    assert mirror.errors() == {}


def test_invalid_annotation_of_pod_keeps_it_in_the_mesh_and_is_reported() -> None:
    annotations = {translation.CAPACITY_ANNOTATION: "x"}
    mirror = make(objects.pod("a", "10.0.0.1", labels=AMBIENT, annotations=annotations))
    assert mirror.snapshot().workloads[0].protocol is TunnelProtocol.HBONE
    assert list(mirror.errors()) == ["Pod default/a"]


def test_other_kinds_and_groups_are_ignored() -> None:
    knative = objects.service("s") | {"apiVersion": "serving.knative.dev/v1"}
    mirror = make(knative, {"apiVersion": "v1", "kind": "ConfigMap"}, {})
    mirror.delete("ConfigMap", "default", "s")
    assert not mirror.drain()
    assert mirror.errors() == {}


def test_lookup_by_node() -> None:
    mirror = make(
        objects.node("node1", "172.30.0.1", "fd00:30::0:1"),
        objects.pod("a", "10.0.0.1"),
        objects.pod("b", "10.0.0.2", node="node2"),
    )
    assert mirror.node_addresses("node1") == ["172.30.0.1", "fd00:30::1"]
    assert [w.name for w in mirror.pods_on("node1")] == ["a"]
    mirror.delete("Node", "", "node1")
    assert mirror.node_addresses("node1") == []
    assert mirror.pods_on("elsewhere") == []


LABELS = st.sampled_from([{}, AMBIENT, {"istio.io/dataplane-mode": "none"}])
NAMESPACES = st.sampled_from(["x", "y"])
NAMES = st.sampled_from(["a", "b", "c"])
IPS = st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"])
OBJECTS = st.one_of(
    st.builds(objects.namespace, NAMESPACES, LABELS),
    st.builds(objects.node, NAMES, IPS),
    st.builds(
        lambda name, ips, **more: objects.pod(name, *ips, **more),
        NAMES,
        st.lists(IPS, max_size=2, unique=True),
        namespace=NAMESPACES,
        labels=LABELS,
        node=st.sampled_from(["node1", "node2"]),
        phase=st.sampled_from(["Pending", "Running", "Succeeded"]),
        ready=st.booleans(),
    ),
    st.builds(
        lambda name, ips, **more: objects.service(name, *ips, **more),
        NAMES,
        st.lists(IPS, max_size=1),
        namespace=NAMESPACES,
        type=st.sampled_from(["ClusterIP", "ClusterIP", "ExternalName"]),
    ),
    st.builds(
        lambda name, service, ips, **more: objects.endpoint_slice(
            name, service, *(objects.endpoint(ip) for ip in ips), **more
        ),
        NAMES,
        st.sampled_from(["a", "b", "c", ""]),
        st.lists(IPS, max_size=3),
        namespace=NAMESPACES,
        port=st.sampled_from([80, 81, None]),
    ),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["upsert", "upsert", "upsert", "delete", "drain"]), OBJECTS),
    max_size=40,
)


def content(change: ViewChange) -> tuple[dict[str, Workload], dict[str, Any]]:
    return {w.uid: w for w in change.workloads}, {s.key: s for s in change.services}


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_view_does_not_depend_on_history(
    steps: list[tuple[str, Object]],
) -> None:
    mirror, now = ClusterView("td", "c"), dict[ObjectKey, Object]()
    workloads: dict[str, Workload] = {}
    services: dict[str, Any] = {}
    for verb, obj in [*steps, ("drain", {})]:
        if verb == "drain":
            change = mirror.drain()
            assert not set(change.removed_workloads) - workloads.keys()
            for uid in change.removed_workloads:
                del workloads[uid]
            for key in change.removed_services:
                del services[key]
            assert all(workloads.get(w.uid) != w for w in change.workloads)
            changed_workloads, changed_services = content(change)
            workloads |= changed_workloads
            services |= changed_services
        elif verb == "upsert":
            mirror.upsert(copy.deepcopy(obj))
            now[key_of(obj)] = obj
        else:
            mirror.delete(*key_of(obj))
            now.pop(key_of(obj), None)
    scratch = make(*now.values())
    assert content(mirror.snapshot()) == content(scratch.snapshot()) == (workloads, services)
    for node in ("node1", "node2"):
        assert {w.uid for w in mirror.pods_on(node)} == {
            w.uid for w in workloads.values() if w.node == node
        }
    for name in ("a", "b", "c"):
        assert mirror.node_addresses(name) == scratch.node_addresses(name)
    for workload in workloads.values():
        assert mirror.workload_by_pod_uid(workload.pod_uid) == workload


def _only_mesh_yes() -> ClusterView:
    return ClusterView("td", "c", discovery=parse('[{"matchLabels": {"mesh": "yes"}}]'))


def test_unselected_namespace_is_ignored() -> None:
    mirror = _only_mesh_yes()
    for name, label in (("in", "yes"), ("out", "no")):
        mirror.upsert(objects.namespace(name, {"mesh": label, **AMBIENT}))
        mirror.upsert(objects.pod(f"pod-{name}", "10.0.0.1", namespace=name))
        mirror.upsert(objects.service(f"service-{name}", "10.96.0.1", namespace=name))
    assert names(mirror.drain()) == ["pod-in", "service-in"]


def test_newly_selected_namespace_adds_its_objects() -> None:
    mirror = _only_mesh_yes()
    mirror.upsert(objects.pod("a", "10.0.0.1"))
    mirror.upsert(objects.service("s", "10.96.0.1"))
    mirror.upsert(objects.namespace("default"))
    change = mirror.drain()
    assert not change.workloads
    assert not change.services
    assert [body.key for body in change.l7] == ["Namespace default"]  # its labels, for gateways
    mirror.upsert(objects.namespace("default", {"mesh": "yes"}))
    assert names(mirror.drain()) == ["a", "s"]
    mirror.upsert(objects.namespace("default", {"mesh": "no"}))
    change = mirror.drain()
    assert len(change.removed_workloads) == len(change.removed_services) == 1


def test_unknown_namespace_is_not_selected() -> None:
    mirror = _only_mesh_yes()
    mirror.upsert(objects.pod("a", "10.0.0.1"))
    assert not mirror.snapshot()


def test_change_has_the_pods_of_the_node_and_whether_they_changed() -> None:
    view = ClusterView("td", "c", node="node1")
    view.upsert(objects.pod("a", "10.0.0.1"))
    first = view.drain()
    assert ([pod.name for pod in first.local_pods], first.local_changed) == (["a"], True)
    view.upsert(objects.pod("b", "10.0.0.2", node="node2"))
    second = view.drain()
    assert [pod.name for pod in second.local_pods] == ["a"]
    assert (second.local_changed, second.affects_authorization) == (False, False)
    assert second.revision == first.revision + 1
    view.delete("Pod", "default", "a")
    third = view.drain()
    assert (third.local_pods, third.local_changed) == ((), True)
    empty = view.drain()
    assert (bool(empty), empty.revision, empty.local_changed) == (False, third.revision, False)
    assert view.snapshot().revision == third.revision


def labeled(**labels: str) -> Object:
    pod = objects.pod("a", "10.0.0.1")
    return pod | {"metadata": pod["metadata"] | {"labels": labels}}


HUGE = {f"label-{number}": "x" * 60 for number in range(1000)}


def test_pod_with_too_many_labels_is_denied_and_keeps_its_telemetry_labels() -> None:
    mirror = make(labeled(app="web", **HUGE))
    change = mirror.drain()
    (workload,), (policy,) = change.workloads, change.policies
    assert workload.labels == {"app": "web"}
    assert isinstance(policy, AuthorizationPolicy)
    assert (policy.action, policy.selections) == (Action.DENY, (Selection(uid=workload.uid),))
    assert "all connections to the pod are denied" in mirror.errors()["Pod default/a"]
    assert mirror.error_of(make_key("Pod", "default", "a")) == mirror.errors()["Pod default/a"]
    state = MeshState()
    state.apply(change)
    target = SocketAddress("10.0.0.1", 80)
    request = AuthzRequest("10.0.0.2", "spiffe://td/ns/x/sa/y", target)
    assert not state.policies.decide(workload, request).allowed


@pytest.mark.parametrize("is_deleted", [True, False])
def test_pod_with_too_many_labels_is_denied_until_it_changes(is_deleted: bool) -> None:
    mirror = make(labeled(**HUGE))
    (policy,) = mirror.drain().policies
    if is_deleted:
        mirror.delete("Pod", "default", "a")
    else:
        mirror.upsert(labeled(app="web"))
    assert mirror.drain().removed_policies == (policy.key,)
    assert mirror.errors() == {}


def test_policy_whose_services_have_too_many_pods_denies_its_namespace() -> None:
    """Their size is known only after the services are joined."""
    service = objects.service("s", "10.96.0.1")
    endpoints = [
        {
            "addresses": [f"10.{number >> 8}.{number & 255}.1"],
            "targetRef": {"kind": "Pod", "name": f"{number}-" + "x" * 200, "namespace": "default"},
        }
        for number in range(2000)
    ]
    piece = {
        "kind": "EndpointSlice",
        "metadata": {"name": "s-1", "namespace": "default", "labels": {SERVICE_LABEL: "s"}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"port": 80}],
    }
    service["spec"].pop("selector", None)
    spec = {"action": "DENY", "targetRefs": [{"kind": "Service", "name": "s"}]}
    metadata = {"name": "p", "namespace": "default"}
    policy = {"kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}
    (found,) = make(service, piece, policy).drain().policies
    assert isinstance(found, AuthorizationPolicy)
    assert "want at most" in found.refused
    assert (found.selections, found.rules) == ((Selection("default"),), (Rule(0),))
