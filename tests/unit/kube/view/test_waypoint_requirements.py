# SPDX-License-Identifier: Apache-2.0
"""ztunnel.dev/require-waypoint: the node of a pod admits only the pod's waypoints."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import kube_objects as objects
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.engine import Decision
from ztunnel.mesh.policy.match_terms import AuthzRequest
from ztunnel.mesh.state import MeshState

REQUIRE = {"ztunnel.dev/require-waypoint": "true"}
USE = {"istio.io/use-waypoint": "waypoint"}
OPTED_OUT = {"ztunnel.dev/require-waypoint": "false"}
CLIENT = "spiffe://td/ns/default/sa/client"
WAYPOINT = "spiffe://td/ns/default/sa/waypoint"


def gateway_pod(account: str = "waypoint", name: str = "waypoint-1") -> Object:
    labels = {"gateway.networking.k8s.io/gateway-name": "waypoint"}
    return objects.pod(name, "10.0.0.9", labels=labels, serviceAccountName=account)


def web(labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None) -> Object:
    return objects.pod("web", "10.0.0.1", labels=labels, annotations=annotations)


def service(labels: dict[str, str] | None = None, name: str = "web") -> Object:
    made = objects.service(name, "10.96.0.1")
    made["metadata"]["labels"] = labels or {}
    return made


SLICE = objects.endpoint_slice("web-1", "web", objects.endpoint("10.0.0.1", "web"))
MESH = (objects.gateway(), gateway_pod(), SLICE)


class Cluster:
    """A cluster view, and a node's state that follows it."""

    def __init__(self, *objs: Object) -> None:
        self.view = ClusterView("td", "c")
        self.state = MeshState()
        self.apply(*objs)

    def apply(self, *objs: Object) -> None:
        for each in objs:
            self.view.upsert(each)
        self.state.apply(self.view.drain())

    def delete(self, kind: str, name: str) -> None:
        self.view.delete(kind, "default", name)
        self.state.apply(self.view.drain())

    def decide(self, identity: str, pod: str = "web") -> Decision:
        workload = self.state.workload(f"c//Pod/default/{pod}")
        assert workload is not None
        request = AuthzRequest("10.0.0.7", identity, SocketAddress("10.0.0.1", 8080))
        return self.state.policies.decide(workload, request)

    def allowed(self) -> tuple[bool, bool, bool]:
        """For the waypoint, another client of the mesh, and plaintext."""
        decisions = [self.decide(identity) for identity in (WAYPOINT, CLIENT, "")]
        return decisions[0].allowed, decisions[1].allowed, decisions[2].allowed


ONLY_WAYPOINT = (True, False, False)
NONE = (False, False, False)
ALL = (True, True, True)


@pytest.mark.parametrize(
    "objs",
    [
        (web(REQUIRE), service(USE)),
        (web(annotations=REQUIRE), service(USE)),
        (web(), service(USE | REQUIRE)),
        (web(), service(USE), objects.namespace(labels=REQUIRE)),
        (web(), service(), objects.namespace(labels=REQUIRE | USE)),
    ],
)
def test_only_the_waypoint_is_admitted(objs: tuple[Object, ...]) -> None:
    cluster = Cluster(*MESH, *objs)
    assert cluster.allowed() == ONLY_WAYPOINT
    reason = "denied by AuthorizationPolicy default/require-waypoint:web, rules[0]"
    assert cluster.decide(CLIENT).reason == reason


def test_annotation_of_a_service_and_of_a_namespace_counts() -> None:
    annotated = service(USE)
    annotated["metadata"]["annotations"] = REQUIRE
    assert Cluster(*MESH, web(), annotated).allowed() == ONLY_WAYPOINT
    namespace = objects.namespace()
    namespace["metadata"]["annotations"] = REQUIRE
    assert Cluster(*MESH, web(), service(USE), namespace).allowed() == ONLY_WAYPOINT


def test_own_waypoint_of_a_pod_is_admitted() -> None:
    gateway = objects.gateway(traffic="workload")
    assert Cluster(gateway, gateway_pod(), web(REQUIRE | USE)).allowed() == ONLY_WAYPOINT


def test_without_the_label_other_clients_are_admitted_as_in_istio() -> None:
    assert Cluster(*MESH, web(), service(USE)).allowed() == ALL


def test_label_of_the_pod_has_precedence() -> None:
    namespace = objects.namespace(labels=REQUIRE)
    assert Cluster(*MESH, web(OPTED_OUT), service(USE | REQUIRE), namespace).allowed() == ALL


@pytest.mark.parametrize("value", ["true", "True", "yes", "1", ""])
def test_every_value_but_false_requires_the_waypoint(value: str) -> None:
    pod = web({"ztunnel.dev/require-waypoint": value})
    assert Cluster(*MESH, pod, service(USE)).allowed() == ONLY_WAYPOINT


def test_pod_without_a_usable_waypoint_admits_no_client() -> None:
    assert Cluster(*MESH, web(REQUIRE), service()).allowed() == NONE
    assert Cluster(gateway_pod(), SLICE, web(REQUIRE), service(USE)).allowed() == NONE
    assert Cluster(objects.gateway(), SLICE, web(REQUIRE), service(USE)).allowed() == NONE


def test_pods_of_the_gateway_are_exempt() -> None:
    cluster = Cluster(*MESH, objects.namespace(labels=REQUIRE))
    assert cluster.decide(CLIENT, "waypoint-1").allowed


def test_policy_follows_the_pods_of_the_waypoint() -> None:
    cluster = Cluster(*MESH, web(REQUIRE), service(USE))
    cluster.apply(gateway_pod(account="client"))
    assert cluster.allowed() == (False, True, False)
    cluster.delete("Pod", "waypoint-1")
    assert cluster.allowed() == NONE
    cluster.apply(gateway_pod())
    assert cluster.allowed() == ONLY_WAYPOINT
    cluster.delete("Gateway", "waypoint")
    assert cluster.allowed() == NONE
    cluster.apply(objects.gateway())
    assert cluster.allowed() == ONLY_WAYPOINT
    cluster.apply(web())
    assert cluster.allowed() == ALL
    assert list(cluster.state.policies) == []


def test_policy_of_a_deleted_pod_is_removed() -> None:
    cluster = Cluster(*MESH, web(REQUIRE), service(USE))
    cluster.delete("Pod", "web")
    assert list(cluster.state.policies) == []


CHANGES = (
    objects.namespace(),
    objects.namespace(labels=REQUIRE),
    objects.namespace(labels=REQUIRE | USE),
    web(),
    web(REQUIRE),
    web(OPTED_OUT),
    web(USE | REQUIRE),
    service(),
    service(USE),
    service(USE | REQUIRE),
    SLICE,
    objects.gateway(),
    objects.gateway(traffic="all"),
    gateway_pod(),
    gateway_pod("client"),
    gateway_pod("client", "waypoint-2"),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.booleans()), max_size=14))
def test_changes_lead_to_the_policies_of_a_complete_list(
    changes: list[tuple[Object, bool]],
) -> None:
    cluster = Cluster()
    final: dict[Any, Object] = {}
    for obj, is_deleted in changes:
        kind, name = obj["kind"], obj["metadata"]["name"]
        if is_deleted:
            cluster.delete(kind, name)
            final.pop((kind, name), None)
        else:
            cluster.apply(obj)
            final[kind, name] = obj
    fresh = Cluster(*final.values())
    assert {each.key: each for each in cluster.state.policies} == {
        each.key: each for each in fresh.state.policies
    }
