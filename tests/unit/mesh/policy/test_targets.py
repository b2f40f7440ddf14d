# SPDX-License-Identifier: Apache-2.0
"""Policies with targetRefs apply to the pods behind the services, including later pods."""

from __future__ import annotations

from typing import Any

from tests.support import kube_objects as objects
from tests.support.policies import Json, authz_request, policy
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.model import Workload
from ztunnel.mesh.policy.model import AuthorizationPolicy
from ztunnel.mesh.state import MeshState


def targeting(*services: str, **other: Any) -> Json:
    references = [{"kind": "Service", "group": "", "name": name} for name in services]
    return policy(namespace="default", targetRefs=references, **other)


class Cluster:
    """A cluster view, and a node's state that follows it."""

    def __init__(self) -> None:
        self.view = ClusterView("cluster.local", "c")
        self.state = MeshState()

    def apply(self, *objects_: Json) -> None:
        for each in objects_:
            self.view.upsert(each)
        self.state.apply(self.view.drain())

    def delete(self, kind: str, name: str) -> None:
        self.view.delete(kind, "default", name)
        self.state.apply(self.view.drain())

    def allowed(self, pod: str) -> bool:
        workload = self.state.workload(f"c//Pod/default/{pod}")
        assert isinstance(workload, Workload)
        return self.state.policies.decide(workload, authz_request()).allowed

    def warnings(self) -> list[str]:
        return [text for each in self.state.policies for text in each.warnings]


def test_policy_applies_to_selected_pods_before_they_are_endpoints() -> None:
    cluster = Cluster()
    cluster.apply(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.pod("db", "10.0.0.2", labels={"app": "db"}),
        objects.service("web", "10.96.0.1", selector={"app": "web"}),
        targeting("web"),
    )
    assert (cluster.allowed("web"), cluster.allowed("db")) == (False, True)
    cluster.apply(objects.pod("late", "10.0.0.3", labels={"app": "web"}))
    assert not cluster.allowed("late")


def test_policy_follows_service_selector() -> None:
    cluster = Cluster()
    cluster.apply(
        targeting("web"),
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.pod("db", "10.0.0.2", labels={"app": "db"}),
    )
    assert cluster.allowed("web")
    assert "selects no pods" in cluster.warnings()[0]
    cluster.apply(objects.service("web", "10.96.0.1", selector={"app": "web"}))
    assert not cluster.allowed("web")
    assert cluster.warnings() == []
    cluster.apply(objects.service("web", "10.96.0.1", selector={"app": "db"}))
    assert (cluster.allowed("web"), cluster.allowed("db")) == (True, False)
    cluster.delete("Service", "web")
    assert (cluster.allowed("web"), cluster.allowed("db")) == (True, True)


def test_service_without_selector_uses_endpoints() -> None:
    cluster = Cluster()
    cluster.apply(
        objects.pod("web", "10.0.0.1"),
        objects.pod("db", "10.0.0.2"),
        objects.service("web", "10.96.0.1"),
        objects.endpoint_slice("web-1", "web", objects.endpoint("10.0.0.1", "web")),
        targeting("web"),
    )
    assert (cluster.allowed("web"), cluster.allowed("db")) == (False, True)
    cluster.apply(
        objects.endpoint_slice("web-1", "web", objects.endpoint("10.0.0.2", "db", ready=False))
    )
    assert (cluster.allowed("web"), cluster.allowed("db")) == (True, False)


def test_several_target_services() -> None:
    cluster = Cluster()
    cluster.apply(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.pod("db", "10.0.0.2", labels={"app": "db"}),
        objects.service("one", "10.96.0.1", selector={"app": "web"}),
        objects.service("two", "10.96.0.2", selector={"app": "web"}),
        objects.service("three", "10.96.0.3", selector={"app": "db"}),
        targeting("one", "two", "three"),
    )
    assert (cluster.allowed("web"), cluster.allowed("db")) == (False, False)
    cluster.delete("AuthorizationPolicy", "p")
    assert (cluster.allowed("web"), cluster.allowed("db")) == (True, True)


def test_policy_without_target_refs_applies_to_namespace() -> None:
    cluster = Cluster()
    cluster.apply(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.pod("db", "10.0.0.2", labels={"app": "db"}),
        objects.service("web", "10.96.0.1", selector={"app": "web"}),
        targeting("web"),
    )
    cluster.apply(policy(namespace="default"))
    assert (cluster.allowed("web"), cluster.allowed("db")) == (False, False)
    cluster.apply(objects.service("web", "10.96.0.1", selector={"app": "none"}))
    assert not cluster.allowed("web")


WAYPOINT_LABEL = {"istio.io/use-waypoint": "waypoint"}


def service_with_waypoint(name: str, **labels: str) -> Json:
    made = objects.service(name, "10.96.0.1", selector={"app": name})
    made["metadata"]["labels"] = WAYPOINT_LABEL | labels
    return made


def test_policy_of_a_service_with_a_waypoint_is_enforced_by_the_waypoint() -> None:
    cluster = Cluster()
    cluster.apply(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.gateway(),
        service_with_waypoint("web"),
        targeting("web"),
    )
    assert cluster.allowed("web")
    (found,) = cluster.state.policies
    assert isinstance(found, AuthorizationPolicy)
    assert found.at_waypoint
    assert found.ignored == (
        "enforced by waypoints, not by nodes: Service default/web by waypoint default/waypoint"
    )


def test_policy_is_enforced_by_nodes_while_the_waypoint_cannot_be_used() -> None:
    cluster = Cluster()
    cluster.apply(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        service_with_waypoint("web"),
        targeting("web"),
    )
    assert not cluster.allowed("web")
    cluster.apply(objects.gateway())
    assert cluster.allowed("web")
    cluster.delete("Gateway", "waypoint")
    assert not cluster.allowed("web")


def test_policy_of_several_services_is_enforced_where_each_of_them_is() -> None:
    cluster = Cluster()
    cluster.apply(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.pod("db", "10.0.0.2", labels={"app": "db"}),
        objects.gateway(),
        service_with_waypoint("web"),
        objects.service("db", "10.96.0.2", selector={"app": "db"}),
        targeting("web", "db"),
    )
    assert (cluster.allowed("web"), cluster.allowed("db")) == (True, False)
    assert cluster.warnings() == [
        "enforced by waypoints, not by nodes: Service default/web by waypoint default/waypoint"
    ]


def test_policy_with_a_selector_is_enforced_by_nodes_despite_a_waypoint() -> None:
    cluster = Cluster()
    cluster.apply(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.gateway(),
        service_with_waypoint("web"),
        policy(namespace="default", selector={"matchLabels": {"app": "web"}}),
    )
    assert not cluster.allowed("web")


def test_policy_of_a_gateway_is_at_the_waypoint() -> None:
    cluster = Cluster()
    gateway = {"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"}
    cluster.apply(objects.pod("web", "10.0.0.1"), policy(namespace="default", targetRefs=[gateway]))
    assert cluster.allowed("web")
    (found,) = cluster.state.policies
    assert isinstance(found, AuthorizationPolicy)
    assert found.at_waypoint
