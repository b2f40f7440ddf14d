# SPDX-License-Identifier: Apache-2.0
"""The lab's Gateway controller: the objects that run each waypoint. Pure.

    Gateway (+ ConfigMap of its parametersRef) ──▶ ServiceAccount, Deployment, Service, …

`ztunnel.l7.deployment` decides what they are, as in a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ztunnel.l7.deployment.resources import (
    LiveState,
    gateway_problems,
    gateway_resources,
    parameters_name,
)
from ztunnel.l7.deployment.settings import DeploymentSettings
from ztunnel.l7.names import WAYPOINT_CLASSES
from ztunnel.l7.objects import L7Object, l7_object
from ztunnel.l7.problems import Severity
from ztunnel.lab.objects import Key, Object, Objects, of_kind


@dataclass
class GatewayPlan:
    """The objects that must exist for Gateways, those that must not, and problems."""

    objects: list[Object] = field(default_factory=list)
    stale: list[Key] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def plan_gateways(objects: Objects) -> GatewayPlan:
    """What Gateways of the waypoint classes need. Gateways of other classes run nothing."""
    plan = GatewayPlan(stale=list(_orphans(objects)))
    for obj in of_kind(objects, "Gateway"):
        try:
            gateway = l7_object(obj)
        except ValueError as error:
            plan.problems.append(str(error))
            continue
        if gateway.spec.get("gatewayClassName") in WAYPOINT_CLASSES:
            _plan_waypoint(plan, gateway, obj["metadata"].get("uid", ""), objects)
    return plan


def _plan_waypoint(plan: GatewayPlan, gateway: L7Object, uid: str, objects: Objects) -> None:
    key = Key("Deployment", gateway.namespace, gateway.name)
    replicas = objects.get(key, {}).get("spec", {}).get("replicas", 1)
    live = LiveState(uid=uid, parameters=_parameters(gateway, objects), replicas=replicas)
    settings = DeploymentSettings()
    problems = gateway_problems(gateway, settings, live)
    plan.problems += map(str, problems)
    if any(problem.severity is Severity.ERROR for problem in problems) and key in objects:
        return  # what runs continues to run
    for obj in gateway_resources(gateway, settings, live):
        if obj["kind"] == "Deployment":
            obj["spec"].setdefault("replicas", replicas)
        plan.objects.append(obj)


def _parameters(gateway: L7Object, objects: Objects) -> dict[str, str] | None:
    """The data of the Gateway's ConfigMap; None if it does not exist."""
    name = parameters_name(gateway)
    if not name:
        return {}
    found = objects.get(Key("ConfigMap", gateway.namespace, name))
    return None if found is None else dict(found.get("data") or {})


def _orphans(objects: Objects) -> Iterator[Key]:
    """The objects whose owner is a Gateway that does not exist any more."""
    owners = {gateway["metadata"].get("uid") for gateway in of_kind(objects, "Gateway")}
    for key, obj in objects.items():
        for owner in obj["metadata"].get("ownerReferences") or []:
            if owner.get("kind") == "Gateway" and owner.get("uid") not in owners:
                yield key
