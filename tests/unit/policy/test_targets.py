# SPDX-License-Identifier: Apache-2.0
"""Policies for services: they take the pods behind them, also those to come."""

from __future__ import annotations

from typing import Any

from tests.support import kube_objects as objects
from tests.unit.policy.fixtures import Json, asked, policy
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.model import Workload
from ztunnel.mesh.state import MeshState


def aimed(*services: str, **other: Any) -> Json:
    references = [{"kind": "Service", "group": "", "name": name} for name in services]
    return policy(namespace="default", targetRefs=references, **other)


class Cluster:
    """A mirror, and a node's state that follows it."""

    def __init__(self) -> None:
        self.mirror = ClusterView("cluster.local", "c")
        self.state = MeshState()

    def say(self, *said: Json) -> None:
        for each in said:
            self.mirror.upsert(each)
        self.state.apply(self.mirror.drain())

    def delete(self, kind: str, name: str) -> None:
        self.mirror.delete(kind, "default", name)
        self.state.apply(self.mirror.drain())

    def allowed(self, pod: str) -> bool:
        workload = self.state.workload(f"c//Pod/default/{pod}")
        assert isinstance(workload, Workload)
        return self.state.policies.decide(workload, asked()).allowed

    def warnings(self) -> list[str]:
        return [text for each in self.state.policies for text in each.warnings]


def test_policy_applies_to_selected_pods_before_they_are_endpoints() -> None:
    cluster = Cluster()
    cluster.say(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.pod("db", "10.0.0.2", labels={"app": "db"}),
        objects.service("web", "10.96.0.1", selector={"app": "web"}),
        aimed("web"),
    )
    assert (cluster.allowed("web"), cluster.allowed("db")) == (False, True)
    cluster.say(objects.pod("late", "10.0.0.3", labels={"app": "web"}))
    assert not cluster.allowed("late")


def test_policy_follows_service_selector() -> None:
    cluster = Cluster()
    cluster.say(
        aimed("web"),
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.pod("db", "10.0.0.2", labels={"app": "db"}),
    )
    assert cluster.allowed("web")
    assert "takes nothing" in cluster.warnings()[0]
    cluster.say(objects.service("web", "10.96.0.1", selector={"app": "web"}))
    assert not cluster.allowed("web")
    assert cluster.warnings() == []
    cluster.say(objects.service("web", "10.96.0.1", selector={"app": "db"}))
    assert (cluster.allowed("web"), cluster.allowed("db")) == (True, False)
    cluster.delete("Service", "web")
    assert (cluster.allowed("web"), cluster.allowed("db")) == (True, True)


def test_service_without_selector_uses_endpoints() -> None:
    cluster = Cluster()
    cluster.say(
        objects.pod("web", "10.0.0.1"),
        objects.pod("db", "10.0.0.2"),
        objects.service("web", "10.96.0.1"),
        objects.endpoint_slice("web-1", "web", objects.endpoint("10.0.0.1", "web")),
        aimed("web"),
    )
    assert (cluster.allowed("web"), cluster.allowed("db")) == (False, True)
    cluster.say(
        objects.endpoint_slice("web-1", "web", objects.endpoint("10.0.0.2", "db", ready=False))
    )
    assert (cluster.allowed("web"), cluster.allowed("db")) == (True, False)


def test_several_target_services() -> None:
    cluster = Cluster()
    cluster.say(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.pod("db", "10.0.0.2", labels={"app": "db"}),
        objects.service("one", "10.96.0.1", selector={"app": "web"}),
        objects.service("two", "10.96.0.2", selector={"app": "web"}),
        objects.service("three", "10.96.0.3", selector={"app": "db"}),
        aimed("one", "two", "three"),
    )
    assert (cluster.allowed("web"), cluster.allowed("db")) == (False, False)
    cluster.delete("AuthorizationPolicy", "p")
    assert (cluster.allowed("web"), cluster.allowed("db")) == (True, True)


def test_policy_without_target_refs_applies_to_namespace() -> None:
    cluster = Cluster()
    cluster.say(
        objects.pod("web", "10.0.0.1", labels={"app": "web"}),
        objects.pod("db", "10.0.0.2", labels={"app": "db"}),
        objects.service("web", "10.96.0.1", selector={"app": "web"}),
        aimed("web"),
    )
    cluster.say(policy(namespace="default"))
    assert (cluster.allowed("web"), cluster.allowed("db")) == (False, False)
    cluster.say(objects.service("web", "10.96.0.1", selector={"app": "none"}))
    assert not cluster.allowed("web")
