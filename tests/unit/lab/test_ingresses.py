# SPDX-License-Identifier: Apache-2.0
"""The lab's Ingress controller."""

from __future__ import annotations

from typing import Any

from ztunnel.lab.cluster.l7.ingresses import plan_ingresses
from ztunnel.lab.objects import Key, Object, key_of

CLASS: Object = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "IngressClass",
    "metadata": {"name": "ztunnel"},
    "spec": {
        "controller": "ztunnel.dev/ingress-controller",
        "parameters": {
            "apiGroup": "gateway.networking.k8s.io",
            "kind": "Gateway",
            "scope": "Namespace",
            "namespace": "shop",
            "name": "web",
        },
    },
}
SERVICE: Object = {
    "kind": "Service",
    "metadata": {"name": "my-app", "namespace": "shop"},
    "spec": {"ports": [{"name": "http", "port": 80}]},
}


def ingress(name: str = "shop", class_name: str = "ztunnel", **spec: Any) -> Object:
    backend = {"service": {"name": "my-app", "port": {"name": "http"}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    found = {
        "ingressClassName": class_name,
        "rules": [{"host": "shop.example", "http": {"paths": [path]}}],
        **spec,
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"},
        "spec": found,
    }


def by_key(*objects: Object) -> dict[Key, Object]:
    return {key_of(obj): obj for obj in objects}


def test_ingress_becomes_a_route_and_a_listener() -> None:
    tls = [{"hosts": ["shop.example"], "secretName": "shop-tls"}]
    plan = plan_ingresses(by_key(CLASS, SERVICE, ingress(tls=tls)))
    assert (plan.problems, plan.stale) == ([], [])
    route, listeners = sorted(plan.objects, key=lambda obj: str(obj["kind"]))
    assert route["spec"]["rules"][0]["backendRefs"][0]["port"] == 80
    assert listeners["kind"] == "ListenerSet"


def test_objects_of_a_deleted_ingress_are_stale() -> None:
    made = plan_ingresses(by_key(CLASS, SERVICE, ingress())).objects
    plan = plan_ingresses(by_key(CLASS, SERVICE, *made))
    assert plan.objects == []
    assert plan.stale == [key_of(obj) for obj in made]


def test_object_of_a_user_with_the_same_name_stays() -> None:
    (made,) = plan_ingresses(by_key(CLASS, SERVICE, ingress())).objects
    own = {**made, "metadata": {**made["metadata"], "labels": {}}}
    plan = plan_ingresses(by_key(CLASS, SERVICE, ingress(), own))
    assert (plan.objects, plan.stale) == ([], [])
    assert "is not of an Ingress" in plan.problems[0]


def test_invalid_ingress_does_not_affect_others() -> None:
    plan = plan_ingresses(by_key(CLASS, SERVICE, ingress("bad", rules="none"), ingress()))
    assert len(plan.objects) == 1
    assert plan.problems[0].startswith("Ingress shop/bad")


def test_ingress_of_another_class_is_left_alone() -> None:
    plan = plan_ingresses(by_key(CLASS, SERVICE, ingress(class_name="nginx")))
    assert (plan.objects, plan.problems) == ([], [])
