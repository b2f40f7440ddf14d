# SPDX-License-Identifier: Apache-2.0
"""Reconciles a Gateway of our classes: applies what runs it, and writes its status.

Gateway, listeners ──▶ l7.deployment ──▶ objects, certificates
                   ──▶ facts: pods, addresses, certificates ──▶ l7.status ──▶ status, if it differs

"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from ztunnel.controller.l7.gateway_classes import GatewayClasses
from ztunnel.controller.l7.gateways.certificates import CertificateState, GatewayCertificates
from ztunnel.controller.l7.gateways.objects import (
    GatewayObjects,
    is_managed,
    ready_pods,
    wanted_pods,
)
from ztunnel.controller.l7.ingress_statuses import IngressStatuses
from ztunnel.controller.l7.model import Model
from ztunnel.controller.l7.object_client import ObjectClient, Ref, mapping
from ztunnel.controller.l7.watches import POD, WORKLOADS, Watches
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.deployment.parameters import requested_addresses
from ztunnel.l7.deployment.requirements import Requirements, requirements
from ztunnel.l7.deployment.resources import (
    LiveState,
    gateway_problems,
    gateway_resources,
    parameters_name,
    resource_name,
    uses_host_ports,
)
from ztunnel.l7.deployment.service import GatewayPort
from ztunnel.l7.deployment.settings import GATEWAY_LABEL, DeploymentSettings
from ztunnel.l7.names import is_ingress_class
from ztunnel.l7.objects import L7Object, l7_object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.status.addresses import address_error, cluster_addresses, gateway_addresses
from ztunnel.l7.status.conditions import has_conditions
from ztunnel.l7.status.facts import GatewayAddress, GatewayFacts
from ztunnel.l7.status.gateway import gateway_status

KIND = "Gateway"
PARAMETERS_POLL_S = 30.0  # of a ConfigMap that the controller may not watch

log = structlog.get_logger()


@dataclass(frozen=True)
class Cluster:
    """What gateways are reconciled with, besides their own objects."""

    client: ObjectClient
    watches: Watches
    classes: GatewayClasses
    model: Model


_NONE = Requirements((), ())  # of a waypoint


class Gateways:
    """One Gateway is reconciled by one thread at a time."""

    def __init__(
        self,
        cluster: Cluster,
        certificates: GatewayCertificates,
        objects: GatewayObjects,
        settings: DeploymentSettings,
        rejected: Callable[[str], str],
    ) -> None:
        """`rejected`: Envoy's message if it rejects the listener of a Gateway, else empty."""
        self._client = cluster.client
        self._watches = cluster.watches
        self._classes = cluster.classes
        self._model = cluster.model
        self._certificates = certificates
        self._objects = objects
        self._settings = settings
        self._rejected = rejected
        self._statuses = IngressStatuses(cluster.client, cluster.watches, cluster.model)

    def reconcile(self, key: str) -> float | None:
        """Reconcile `namespace/name`; returns in how many seconds to repeat. Raises ApiError."""
        namespace, _, name = key.partition("/")
        obj = self._watches.get(KIND, namespace, name)
        gateway = _parsed(obj)
        class_name = _class_name(gateway)
        if obj is None or gateway is None or not self._classes.is_ours(class_name):
            self._prune_all(namespace, name)
            return None
        needs = self._requirements(gateway)
        live = self._live_state(obj, gateway, needs.ports)
        problems = gateway_problems(gateway, self._settings, live)
        state = CertificateState({})
        if is_ingress_class(class_name):  # renewals do not wait for a valid ConfigMap
            state = self._certificates.reconcile(obj, gateway, needs.certificates)
        conflict, repeat_s = "", None
        if not any(problem.severity is Severity.ERROR for problem in problems):
            wanted = gateway_resources(gateway, self._settings, live)
            conflict, repeat_s = self._objects.apply(gateway, live.uid, wanted)
        facts = self._facts(gateway, live, problems, state, conflict)
        self._write_status(obj, gateway, facts)
        polls_s = PARAMETERS_POLL_S if parameters_name(gateway) else None
        delays_s = [each for each in (repeat_s, state.repeat_s, polls_s) if each is not None]
        return min(delays_s, default=None)

    def is_ready(self, key: str) -> bool:
        """Whether a pod of the Gateway `namespace/name` is ready."""
        namespace, _, name = key.partition("/")
        gateway = _parsed(self._watches.get(KIND, namespace, name))
        return gateway is not None and ready_pods(self._workload(gateway)) > 0

    def _requirements(self, gateway: L7Object) -> Requirements:
        if not is_ingress_class(_class_name(gateway)):
            return _NONE
        with self._model.inputs() as inputs:
            return requirements(inputs.store, gateway)

    def _live_state(
        self, obj: Object, gateway: L7Object, ports: tuple[GatewayPort, ...]
    ) -> LiveState:
        parameters: Mapping[str, str] | None = {}
        name = parameters_name(gateway)
        if name:
            found = self._client.get(Ref("ConfigMap", gateway.namespace, name))
            parameters = _texts(found.get("data")) if found is not None else None
        deployment = self._watches.get("Deployment", gateway.namespace, resource_name(gateway))
        return LiveState(
            uid=str(obj["metadata"].get("uid") or ""),
            parameters=parameters,
            replicas=wanted_pods(deployment) if deployment is not None else 1,
            ports=ports,
        )

    def _facts(
        self,
        gateway: L7Object,
        live: LiveState,
        problems: tuple[Problem, ...],
        state: CertificateState,
        conflict: str,
    ) -> GatewayFacts:
        workload = self._workload(gateway)
        addresses = self._addresses(gateway, live)
        is_ingress = is_ingress_class(_class_name(gateway))
        requested = requested_addresses(gateway) if is_ingress else []
        return GatewayFacts(
            problems=problems,
            addresses=addresses,
            wanted=wanted_pods(workload) if workload is not None else live.replicas,
            ready=ready_pods(workload),
            conflict=conflict
            or state.conflict
            or self._rejected(f"{gateway.namespace}/{gateway.name}"),
            detail=_failure(workload),
            address_error=address_error(requested, addresses),
            certificates=state.facts,
        )

    def _prune_all(self, namespace: str, name: str) -> None:
        """Delete what ran a Gateway that is gone, or belongs to another class now.

        Kubernetes' garbage collector does so for deleted Gateways; this is for a change of class.
        """
        if not self._watches.is_listed(KIND) or not self._watches.is_listed("GatewayClass"):
            return
        if not self._objects.exist(namespace, name) and not self._certificates.exist(
            namespace, name
        ):
            return
        current = self._client.get(Ref(KIND, namespace, name))
        class_name = mapping((current or {}).get("spec")).get("gatewayClassName")
        if current is None or self._classes.is_foreign(str(class_name)):
            self._objects.prune(namespace, name, set())
            self._certificates.forget(namespace, name)

    def _workload(self, gateway: L7Object) -> Object | None:
        """The Deployment or DaemonSet; while one replaces the other, the one with ready pods."""
        name = resource_name(gateway)
        found = [self._watches.get(kind, gateway.namespace, name) for kind in WORKLOADS]
        existing = [each for each in found if each is not None]
        return max(existing, key=ready_pods, default=None)

    def _addresses(self, gateway: L7Object, live: LiveState) -> tuple[GatewayAddress, ...]:
        service = self._watches.get("Service", gateway.namespace, resource_name(gateway))
        if service is None or not is_managed(service):
            return ()
        if not is_ingress_class(_class_name(gateway)):
            return cluster_addresses(service)
        host_ports = uses_host_ports(gateway, self._settings, live)
        return gateway_addresses(service, self._nodes(gateway), host_ports=host_ports)

    def _nodes(self, gateway: L7Object) -> list[str]:
        """The addresses of the nodes on which a pod of the Gateway is ready."""
        found = []
        for pod in self._watches.objects(POD):
            metadata, status = pod["metadata"], mapping(pod.get("status"))
            labels = mapping(metadata.get("labels"))
            is_ready = {"type": "Ready", "status": "True"} in (status.get("conditions") or [])
            place = metadata.get("namespace"), labels.get(GATEWAY_LABEL)
            if is_ready and place == (gateway.namespace, gateway.name) and status.get("hostIP"):
                found.append(str(status["hostIP"]))
        return found

    def _write_status(self, obj: Object, gateway: L7Object, facts: GatewayFacts) -> None:
        if is_ingress_class(_class_name(gateway)):
            self._statuses.write(obj, gateway, facts)
            return
        before = mapping(obj.get("status"))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = gateway_status(gateway, facts, before, now)
        if not _same_status(status, before):
            self._client.apply_status(obj, status, force=True)
        for condition in status["conditions"]:
            if condition["status"] == "False" and condition["reason"] in _EVENT_REASONS:
                self._client.emit_event(obj, "MeshGatewayInvalid", condition["message"])


_EVENT_REASONS = frozenset({"InvalidParameters", "UnsupportedAddress", "ListenersNotValid"})


def _same_status(status: Object, before: Object) -> bool:
    listeners = {each["name"]: each for each in status["listeners"]}
    known = {each.get("name"): each for each in before.get("listeners") or []}
    return (
        status["addresses"] == (before.get("addresses") or [])
        and has_conditions(before.get("conditions"), status["conditions"])
        and listeners.keys() == known.keys()
        and all(
            has_conditions(known[name].get("conditions"), each["conditions"])
            and each["attachedRoutes"] == known[name].get("attachedRoutes")
            for name, each in listeners.items()
        )
    )


def _parsed(obj: Object | None) -> L7Object | None:
    if obj is None:
        return None
    try:
        return l7_object(obj)
    except ValueError as error:
        log.warning("gateway invalid", error=str(error))
        return None


def _class_name(gateway: L7Object | None) -> str:
    return str(gateway.spec.get("gatewayClassName") or "") if gateway is not None else ""


def _failure(workload: Object | None) -> str:
    """Why a Deployment has no pods, for example because admission rejects them."""
    conditions = mapping((workload or {}).get("status")).get("conditions")
    for each in conditions if isinstance(conditions, list) else ():
        found = mapping(each)
        state = found.get("type"), found.get("status")
        if state in (("ReplicaFailure", "True"), ("Progressing", "False")):
            return str(found.get("message") or "")
    return ""


def _texts(value: object) -> dict[str, str]:
    return {key: text for key, text in mapping(value).items() if isinstance(text, str)}
