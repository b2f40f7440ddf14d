# SPDX-License-Identifier: Apache-2.0
"""The objects that run a Gateway: ServiceAccount, Deployment or DaemonSet, Service, and if wanted a
HorizontalPodAutoscaler and a PodDisruptionBudget.

    Gateway (+ ConfigMap of its parametersRef) ──▶ objects for server-side apply, and Problems

Those of a waypoint have the Gateway's name, as Istio's waypoints have; those of an ingress gateway
are named `<gateway>-<class>` (GEP-1762). All are owned by the Gateway, so that Kubernetes deletes
them with it. The number of replicas is left to autoscalers and users, unless an overlay sets it.

The pods do not depend on listeners and certificates (but for host ports): a change of them does not
replace the pods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ztunnel.l7.deployment.overlay import OverlayKey, merge
from ztunnel.l7.deployment.parameters import (
    Options,
    Problems,
    WorkloadKind,
    class_of,
    infrastructure_metadata,
    is_reserved,
    parameters_name,
    read_options,
    read_overlays,
)
from ztunnel.l7.deployment.pod import as_ingress, pod_spec, scrape_annotations, with_arguments
from ztunnel.l7.deployment.service import (
    GatewayPort,
    distinct_ports,
    ingress_service,
    waypoint_service,
)
from ztunnel.l7.deployment.settings import (
    CLASS_LABEL,
    GATEWAY_LABEL,
    MANAGED_BY,
    MANAGED_LABEL,
    DeploymentSettings,
    Json,
)
from ztunnel.l7.names import INGRESS_CLASSES, is_ingress_class
from ztunnel.l7.objects import L7_KINDS, L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.mesh.enrollment import MODE_AMBIENT, MODE_LABEL

__all__ = ["LiveState", "gateway_problems", "gateway_resources", "parameters_name"]

CANONICAL_NAME_LABEL = "service.istio.io/canonical-name"
MAX_NAME_CHARS = 63  # of a Service and of a label's value (Kubernetes)
_API_VERSIONS = {
    "ServiceAccount": "v1",
    "Deployment": "apps/v1",
    "DaemonSet": "apps/v1",
    "Service": "v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "PodDisruptionBudget": "policy/v1",
}
_OVERLAY_KINDS = {
    "ServiceAccount": OverlayKey.SERVICE_ACCOUNT,
    "Deployment": OverlayKey.DEPLOYMENT,
    "DaemonSet": OverlayKey.DAEMON_SET,
    "Service": OverlayKey.SERVICE,
    "HorizontalPodAutoscaler": OverlayKey.AUTOSCALER,
    "PodDisruptionBudget": OverlayKey.DISRUPTION_BUDGET,
}


@dataclass(frozen=True)
class LiveState:
    """What the caller knows besides the Gateway.

    `uid`: of the Gateway; without one, the objects have no owner. `parameters`: the data of the
    ConfigMap that `parameters_name` returns; None if it does not exist. `replicas`: that the
    Deployment has now. `ports`: of the listeners of an ingress gateway.
    """

    uid: str = ""
    parameters: Mapping[str, str] | None = field(default_factory=dict)
    replicas: int = 1
    ports: tuple[GatewayPort, ...] = ()


def resource_name(gateway: L7Object) -> str:
    """The name of all objects that run a Gateway."""
    name = class_of(gateway)
    return f"{gateway.name}-{name}" if is_ingress_class(name) else gateway.name


def certificates_name(gateway: L7Object) -> str:
    """The Secret with the certificates of an ingress gateway."""
    return f"{resource_name(gateway)}-certificates"


def possible_names(gateway: str) -> tuple[str, ...]:
    """The names that the objects of a Gateway have, or had while it was of another class."""
    return gateway, *(f"{gateway}-{name}" for name in INGRESS_CLASSES)


def possible_gateways(name: str) -> tuple[str, ...]:
    """The Gateways, by name, that an object of this name may belong to."""
    suffixes = [f"-{each}" for each in INGRESS_CLASSES]
    return name, *(name.removesuffix(each) for each in suffixes if name.endswith(each))


def gateway_resources(
    gateway: L7Object, settings: DeploymentSettings, live: LiveState | None = None
) -> list[Json]:
    """Return the objects to apply, in order.

    If a problem has severity ERROR, the caller must not replace existing objects by them.
    """
    return _Plan(gateway, settings, live or LiveState()).objects


def gateway_problems(
    gateway: L7Object, settings: DeploymentSettings, live: LiveState | None = None
) -> tuple[Problem, ...]:
    """Return what is not honoured of `spec.infrastructure` and of its ConfigMap."""
    return tuple(_Plan(gateway, settings, live or LiveState()).problems)


def uses_host_ports(gateway: L7Object, settings: DeploymentSettings, live: LiveState) -> bool:
    """Whether the pods of a Gateway bind the ports of its listeners on their nodes."""
    return _Plan(gateway, settings, live).binds_host_ports


class _Plan:
    """Builds `objects` and `problems` of one Gateway."""

    def __init__(self, gateway: L7Object, settings: DeploymentSettings, live: LiveState) -> None:
        self._gateway = gateway
        self._settings = settings
        self._live = live
        self._collected = Problems(gateway)
        self._is_ingress = is_ingress_class(class_of(gateway))
        self._name = resource_name(gateway)
        self._ports = distinct_ports(live.ports)
        report = self._report = self._collected.report
        self._labels = object_labels(gateway)
        reserved = frozenset({*self._labels, MODE_LABEL})
        self._added_labels = infrastructure_metadata(gateway, "labels", reserved, report)
        self._annotations = infrastructure_metadata(gateway, "annotations", frozenset(), report)
        self._options: Options = read_options(gateway, settings, report)
        self._overlays = read_overlays(gateway, live.parameters, report)
        if len(self._name) > MAX_NAME_CHARS:
            message = f"{self._name} has more than {MAX_NAME_CHARS} characters"
            report("metadata.name", message, Severity.ERROR)
        self.objects = self._build()

    @property
    def problems(self) -> list[Problem]:
        return self._collected.found

    @property
    def binds_host_ports(self) -> bool:
        return self._options.host_ports

    def _build(self) -> list[Json]:
        account = self._object("ServiceAccount", {})
        workload = self._workload()
        service = self._service()
        objects = [account, workload, service]
        if self._options.workload is WorkloadKind.DAEMON_SET:
            for key in (OverlayKey.AUTOSCALER, OverlayKey.DISRUPTION_BUDGET, OverlayKey.DEPLOYMENT):
                if key in self._overlays:
                    self._report(key.value, "has no effect: the Gateway runs as a DaemonSet")
            return objects
        if OverlayKey.DAEMON_SET in self._overlays:
            self._report(OverlayKey.DAEMON_SET.value, "has no effect: it runs as a Deployment")
        autoscaler = None
        if OverlayKey.AUTOSCALER in self._overlays:
            autoscaler = self._object("HorizontalPodAutoscaler", self._autoscaler())
            objects.append(autoscaler)
        if self._wants_budget(workload, autoscaler):
            objects.append(self._object("PodDisruptionBudget", self._budget()))
        return objects

    def _workload(self) -> Json:
        """The Deployment or DaemonSet."""
        kind, name = self._options.workload.value, f"{self._gateway.namespace}/{self._gateway.name}"
        pod_labels: dict[str, str] = {
            **self._added_labels,
            **self._labels,
            CANONICAL_NAME_LABEL: self._name,
            MODE_LABEL: MODE_AMBIENT,  # the node terminates and originates its tunnels
        }
        metadata: Json = {
            "labels": pod_labels,
            "annotations": {**scrape_annotations(), **self._annotations},
        }
        pod = pod_spec(name, self._name, self._settings)
        if self._is_ingress:
            host_ports = self._ports if self._options.host_ports else ()
            pod = as_ingress(pod, name, certificates_name(self._gateway), host_ports)
        spec: Json = {
            "selector": {"matchLabels": {GATEWAY_LABEL: self._gateway.name}},
            **self._strategy(),
            "template": {"metadata": metadata, "spec": pod},
        }
        merged = self._object(kind, spec)
        template: Json = merged["spec"]["template"]
        self._protect(template["metadata"], pod_labels)
        if len(template["spec"]["containers"]) > 1:
            key = _OVERLAY_KINDS[kind]
            self._report(f"{key}: spec.template.spec.containers", "unknown name")
            template["spec"]["containers"] = template["spec"]["containers"][:1]
        template["spec"] = with_arguments(template["spec"], name)
        return merged

    def _strategy(self) -> Json:
        """A new pod is ready before an old one ends, unless both need the same port of a node."""
        surge = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        if self._options.workload is WorkloadKind.DEPLOYMENT:
            return {"strategy": surge}
        replace = {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
        return {"updateStrategy": replace if self._options.host_ports else surge}

    def _object(self, kind: str, spec: Json) -> Json:
        """An object with its overlay."""
        metadata: Json = {
            "name": self._name,
            "namespace": self._gateway.namespace,
            "labels": {**self._added_labels, **self._labels},
        }
        if self._annotations:
            metadata["annotations"] = dict(self._annotations)
        if self._live.uid:
            metadata["ownerReferences"] = [owner_reference(self._gateway, self._live.uid)]
        made: Json = {"apiVersion": _API_VERSIONS[kind], "kind": kind, "metadata": metadata}
        if spec:
            made["spec"] = spec
        overlay = self._overlays.get(_OVERLAY_KINDS[kind])
        merged = merge(made, overlay) if overlay else made
        self._protect(merged["metadata"], self._labels)
        return merged

    def _protect(self, metadata: Json, labels: Mapping[str, str]) -> None:
        """Undo what an overlay did to labels and annotations that the mesh depends on."""
        found = metadata.get("labels")
        metadata["labels"] = {**(found if isinstance(found, dict) else {}), **labels}
        annotations = metadata.get("annotations")
        if isinstance(annotations, dict):
            metadata["annotations"] = {
                name: value for name, value in annotations.items() if not is_reserved(name)
            }

    def _service(self) -> Json:
        if not self._is_ingress:
            return self._object("Service", waypoint_service(self._gateway.name))
        options = self._options
        spec = ingress_service(
            self._gateway.name, options.service_type, self._ports, options.address
        )
        merged = self._object("Service", spec)
        ports = merged["spec"].get("ports")
        known = [each for each in ports if "name" in each] if isinstance(ports, list) else []
        if known != ports:
            where = f"{OverlayKey.SERVICE}: spec.ports"
            self._report(where, "not honoured: no listener has the port; only nodePort can be set")
        merged["spec"]["ports"] = known or spec["ports"]
        return merged

    def _autoscaler(self) -> Json:
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": self._name}
        return {"scaleTargetRef": target, "maxReplicas": 2}

    def _budget(self) -> Json:
        overlay = self._overlays.get(OverlayKey.DISRUPTION_BUDGET, {}).get("spec")
        limits = {} if isinstance(overlay, dict) and overlay else {"maxUnavailable": 1}
        return {"selector": {"matchLabels": {GATEWAY_LABEL: self._gateway.name}}, **limits}

    def _wants_budget(self, deployment: Json, autoscaler: Json | None) -> bool:
        """With one replica, a budget would block the eviction of its pod, thus every node drain."""
        if OverlayKey.DISRUPTION_BUDGET in self._overlays:
            return True
        replicas = [self._live.replicas, deployment["spec"].get("replicas")]
        if autoscaler is not None:
            replicas.append(autoscaler["spec"].get("minReplicas"))
        return any(isinstance(count, int) and count > 1 for count in replicas)


def object_labels(gateway: L7Object) -> dict[str, str]:
    """The labels of all objects that run a Gateway."""
    return {
        GATEWAY_LABEL: gateway.name,
        CLASS_LABEL: class_of(gateway),
        MANAGED_LABEL: MANAGED_BY,
    }


def owner_reference(gateway: L7Object, uid: str) -> Json:
    """The entry of `ownerReferences` by which an object belongs to a Gateway."""
    return {
        "apiVersion": L7_KINDS["Gateway"].api_version,
        "kind": "Gateway",
        "name": gateway.name,
        "uid": uid,
        "controller": True,
    }
