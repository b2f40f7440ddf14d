# SPDX-License-Identifier: Apache-2.0
"""The lab's Gateway controller: the objects that run waypoints and ingress gateways. Pure.

    Gateway (+ ConfigMap of its parametersRef) ──▶ ServiceAccount, Deployment, Service, …
    Secrets, ConfigMaps of its certificates    ──▶ Secret with files, annotation of the Gateway

`ztunnel.l7.deployment` decides what they are, as in a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ztunnel.kube.objects.l7_kinds import GATEWAY_CERTIFICATES_ANNOTATION, STORED_KINDS
from ztunnel.l7.deployment.certificate_data import decoded
from ztunnel.l7.deployment.certificates import (
    GatewayFiles,
    certificates_secret,
    gateway_files,
)
from ztunnel.l7.deployment.requirements import Requirements, requirements
from ztunnel.l7.deployment.resources import (
    LiveState,
    certificates_name,
    gateway_problems,
    gateway_resources,
    parameters_name,
    resource_name,
)
from ztunnel.l7.deployment.settings import ALL_NAMESPACES, DeploymentSettings
from ztunnel.l7.ingress.listeners import is_ingress_gateway
from ztunnel.l7.names import WAYPOINT_CLASSES
from ztunnel.l7.objects import L7Object, l7_object
from ztunnel.l7.problems import Severity
from ztunnel.l7.store import L7Store
from ztunnel.lab.objects import SECRET, Key, Object, Objects, of_kind

_WORKLOADS = ("Deployment", "DaemonSet")


@dataclass
class GatewayPlan:
    """The objects that must exist for Gateways, those that must not, and problems.

    `annotated`: Gateways whose annotation changes. Nodes depend on it, so it must be stored after
    the pods have the files that it names.
    """

    objects: list[Object] = field(default_factory=list)
    stale: list[Key] = field(default_factory=list)
    annotated: list[Object] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def plan_gateways(objects: Objects) -> GatewayPlan:
    """What Gateways of our classes need. Gateways of other classes run nothing."""
    plan = GatewayPlan(stale=list(_orphans(objects)))
    store = _store(objects, plan)
    for obj in of_kind(objects, "Gateway"):
        try:
            gateway = l7_object(obj)
        except ValueError:
            continue  # reported by _store
        if gateway.spec.get("gatewayClassName") in WAYPOINT_CLASSES:
            _plan_pods(plan, gateway, obj, objects, Requirements((), ()))
        elif is_ingress_gateway(store, gateway):
            required = requirements(store, gateway)
            annotated = _plan_certificates(plan, gateway, obj, objects, required)
            store.put(l7_object(annotated))  # a listener without valid authorities has no port
            required = requirements(store, l7_object(annotated))
            _plan_pods(plan, gateway, obj, objects, required)
    return plan


def _store(objects: Objects, plan: GatewayPlan) -> L7Store:
    store = L7Store()
    for obj in objects.values():
        if obj["kind"] in STORED_KINDS:
            try:
                store.put(l7_object(obj))
            except ValueError as error:
                plan.problems.append(str(error))
    return store


def _plan_pods(
    plan: GatewayPlan, gateway: L7Object, obj: Object, objects: Objects, required: Requirements
) -> None:
    name = resource_name(gateway)
    running = [Key(kind, gateway.namespace, name) for kind in _WORKLOADS]
    replicas = objects.get(running[0], {}).get("spec", {}).get("replicas", 1)
    live = LiveState(
        uid=obj["metadata"].get("uid", ""),
        parameters=_parameters(gateway, objects),
        replicas=replicas,
        ports=required.ports,
    )
    settings = DeploymentSettings(host_port_namespaces=frozenset({ALL_NAMESPACES}))
    problems = gateway_problems(gateway, settings, live)
    plan.problems += map(str, problems)
    is_invalid = any(problem.severity is Severity.ERROR for problem in problems)
    if is_invalid and any(key in objects for key in running):
        return  # what runs continues to run
    for made in gateway_resources(gateway, settings, live):
        if made["kind"] == "Deployment":
            made["spec"].setdefault("replicas", replicas)
        plan.objects.append(made)


def _plan_certificates(
    plan: GatewayPlan, gateway: L7Object, obj: Object, objects: Objects, required: Requirements
) -> Object:
    """Plan the Secret that the pods mount, and the annotation with what it contains; returns the
    Gateway with it."""
    secret = Key(SECRET, gateway.namespace, certificates_name(gateway))
    found = gateway_files(
        required.certificates,
        {source: decoded(objects.get(Key(*source))) for source in required.sources},
        _files(objects.get(secret)),
    )
    plan.problems += [
        f"{gateway.key}: {fact.message}" for fact in found.facts.values() if fact.error is not None
    ]
    plan.objects.append(certificates_secret(gateway, obj["metadata"].get("uid", ""), found.files))
    return _plan_annotation(plan, obj, found)


def _files(secret: Object | None) -> dict[str, bytes]:
    data = decoded(secret)
    return dict(data) if isinstance(data, dict) else {}


def _plan_annotation(plan: GatewayPlan, obj: Object, found: GatewayFiles) -> Object:
    annotations = dict(obj["metadata"].get("annotations") or {})
    before = annotations.pop(GATEWAY_CERTIFICATES_ANNOTATION, "")
    if found.annotation:
        annotations[GATEWAY_CERTIFICATES_ANNOTATION] = found.annotation
    if before == found.annotation:
        return obj
    annotated = {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}
    plan.annotated.append(annotated)
    return annotated


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
