# SPDX-License-Identifier: Apache-2.0
"""The lab's Gateway controller."""

from __future__ import annotations

from typing import Any

from ztunnel.lab.cluster.gateways import plan_gateways
from ztunnel.lab.objects import Key, Object, key_of


def gateway(class_name: str = "istio-waypoint", **spec: Any) -> Object:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "waypoint", "namespace": "shop", "uid": "u1"},
        "spec": {
            "gatewayClassName": class_name,
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
            **spec,
        },
    }


def by_key(*objects: Object) -> dict[Key, Object]:
    return {key_of(obj): obj for obj in objects}


def test_waypoint_gets_an_account_a_deployment_and_a_service() -> None:
    plan = plan_gateways(by_key(gateway()))
    assert [obj["kind"] for obj in plan.objects] == ["ServiceAccount", "Deployment", "Service"]
    assert plan.problems == []


def test_gateway_of_another_class_runs_nothing() -> None:
    assert plan_gateways(by_key(gateway("nginx"))).objects == []


def test_scaled_deployment_keeps_its_replicas() -> None:
    objects = by_key(gateway())
    deployment = plan_gateways(objects).objects[1]
    deployment["spec"]["replicas"] = 3
    planned = plan_gateways({**objects, key_of(deployment): deployment})
    assert planned.objects[1]["spec"]["replicas"] == 3


def test_objects_of_a_deleted_gateway_are_stale() -> None:
    objects = by_key(*plan_gateways(by_key(gateway())).objects)
    plan = plan_gateways(objects)
    assert set(plan.stale) == set(objects)
    assert plan.objects == []


def test_missing_parameters_are_a_problem_and_replace_nothing() -> None:
    running = plan_gateways(by_key(gateway())).objects
    reference = {"group": "", "kind": "ConfigMap", "name": "absent"}
    broken = gateway(infrastructure={"parametersRef": reference})
    plan = plan_gateways(by_key(broken, *running))
    assert plan.objects == []
    assert "absent" in plan.problems[0]
