# SPDX-License-Identifier: Apache-2.0
"""The objects that run a Gateway: ServiceAccount, Deployment, Service, and if wanted a
HorizontalPodAutoscaler and a PodDisruptionBudget.

    Gateway (+ ConfigMap of its parametersRef) ──▶ objects for server-side apply, and Problems

All have the Gateway's name, as Istio's waypoints have, and are owned by it, so that Kubernetes
deletes them with it. The number of replicas is left to autoscalers and users, unless an
overlay sets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ztunnel.l7.deployment.overlay import (
    OverlayError,
    OverlayKey,
    merge,
    parse_overlay,
    restrict,
)
from ztunnel.l7.deployment.pod import pod_spec, scrape_annotations, with_arguments
from ztunnel.l7.deployment.settings import (
    CLASS_LABEL,
    GATEWAY_LABEL,
    MANAGED_BY,
    MANAGED_LABEL,
    DeploymentSettings,
    Json,
)
from ztunnel.l7.names import READINESS_PORT
from ztunnel.l7.objects import L7_KINDS, L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.mesh.enrollment import (
    MODE_AMBIENT,
    MODE_LABEL,
    REDIRECTION_ANNOTATION,
    SIDECAR_ANNOTATION,
)
from ztunnel.mesh.ports import HBONE

CANONICAL_NAME_LABEL = "service.istio.io/canonical-name"
_RESERVED_ANNOTATIONS = frozenset({SIDECAR_ANNOTATION, REDIRECTION_ANNOTATION})
_OWN_DOMAIN = "ztunnel.dev/"
_API_VERSIONS = {
    "ServiceAccount": "v1",
    "Deployment": "apps/v1",
    "Service": "v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "PodDisruptionBudget": "policy/v1",
}
_OVERLAY_KINDS = {
    "ServiceAccount": OverlayKey.SERVICE_ACCOUNT,
    "Deployment": OverlayKey.DEPLOYMENT,
    "Service": OverlayKey.SERVICE,
    "HorizontalPodAutoscaler": OverlayKey.AUTOSCALER,
    "PodDisruptionBudget": OverlayKey.DISRUPTION_BUDGET,
}


@dataclass(frozen=True)
class LiveState:
    """What the caller knows besides the Gateway.

    `uid`: of the Gateway; without one, the objects have no owner. `parameters`: the data of the
    ConfigMap that `parameters_name` returns; None if it does not exist. `replicas`: that the
    Deployment has now.
    """

    uid: str = ""
    parameters: Mapping[str, str] | None = field(default_factory=dict)
    replicas: int = 1


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


def parameters_name(gateway: L7Object) -> str:
    """The ConfigMap, in the Gateway's namespace, that `parametersRef` names; empty if none."""
    infrastructure = gateway.spec.get("infrastructure")
    reference = infrastructure.get("parametersRef") if isinstance(infrastructure, dict) else None
    if not isinstance(reference, dict):
        return ""
    is_config_map = reference.get("kind") == "ConfigMap" and not reference.get("group")
    name = reference.get("name")
    return name if is_config_map and isinstance(name, str) else ""


class _Plan:
    """Builds `objects` and `problems` of one Gateway."""

    def __init__(self, gateway: L7Object, settings: DeploymentSettings, live: LiveState) -> None:
        self._gateway = gateway
        self._settings = settings
        self._live = live
        self.problems: list[Problem] = []
        self._labels = {
            GATEWAY_LABEL: gateway.name,
            CLASS_LABEL: str(gateway.spec.get("gatewayClassName") or ""),
            MANAGED_LABEL: MANAGED_BY,
        }
        self._added_labels = self._infrastructure("labels")
        self._annotations = self._infrastructure("annotations")
        self._overlays = self._read_overlays()
        self.objects = self._build()

    def _build(self) -> list[Json]:
        account = self._object("ServiceAccount", {})
        deployment = self._deployment()
        service = self._object("Service", self._service())
        objects = [account, deployment, service]
        autoscaler = None
        if OverlayKey.AUTOSCALER in self._overlays:
            autoscaler = self._object("HorizontalPodAutoscaler", self._autoscaler())
            objects.append(autoscaler)
        if self._wants_budget(deployment, autoscaler):
            objects.append(self._object("PodDisruptionBudget", self._budget()))
        return objects

    def _deployment(self) -> Json:
        name = f"{self._gateway.namespace}/{self._gateway.name}"
        pod_labels: dict[str, str] = {
            **self._added_labels,
            **self._labels,
            CANONICAL_NAME_LABEL: self._gateway.name,
            MODE_LABEL: MODE_AMBIENT,  # the node terminates and originates its tunnels
        }
        metadata: Json = {
            "labels": pod_labels,
            "annotations": {**scrape_annotations(), **self._annotations},
        }
        spec: Json = {
            "selector": {"matchLabels": {GATEWAY_LABEL: self._gateway.name}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": metadata,
                "spec": pod_spec(name, self._gateway.name, self._settings),
            },
        }
        merged = self._object("Deployment", spec)
        template: Json = merged["spec"]["template"]
        self._protect(template["metadata"], pod_labels)
        if len(template["spec"]["containers"]) > 1:
            self._report(f"{OverlayKey.DEPLOYMENT}: spec.template.spec.containers", "unknown name")
            template["spec"]["containers"] = template["spec"]["containers"][:1]
        template["spec"] = with_arguments(template["spec"], name)
        return merged

    def _object(self, kind: str, spec: Json) -> Json:
        """An object with its overlay."""
        metadata: Json = {
            "name": self._gateway.name,
            "namespace": self._gateway.namespace,
            "labels": {**self._added_labels, **self._labels},
        }
        if self._annotations:
            metadata["annotations"] = dict(self._annotations)
        if self._live.uid:
            metadata["ownerReferences"] = [self._owner()]
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
                name: value for name, value in annotations.items() if not _is_reserved(name)
            }

    def _owner(self) -> Json:
        return {
            "apiVersion": L7_KINDS["Gateway"].api_version,
            "kind": "Gateway",
            "name": self._gateway.name,
            "uid": self._live.uid,
            "controller": True,
        }

    def _service(self) -> Json:
        return {
            "type": "ClusterIP",
            "selector": {GATEWAY_LABEL: self._gateway.name},
            "ports": [
                _port("status-port", READINESS_PORT, "tcp"),
                _port("mesh", HBONE, "hbone"),
            ],
        }

    def _autoscaler(self) -> Json:
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": self._gateway.name}
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

    def _infrastructure(self, name: str) -> dict[str, str]:
        """`spec.infrastructure.labels` or `annotations`, without reserved ones."""
        infrastructure = self._gateway.spec.get("infrastructure")
        values = infrastructure.get(name) if isinstance(infrastructure, dict) else None
        found: dict[str, str] = {}
        for key, value in (values if isinstance(values, dict) else {}).items():
            is_reserved = name == "labels" and key in {*self._labels, MODE_LABEL}
            if is_reserved or not isinstance(value, str) or _is_reserved(key):
                self._report(f"spec.infrastructure.{name}", f"{key} is reserved for the mesh")
            else:
                found[key] = value
        return found

    def _read_overlays(self) -> dict[OverlayKey, Json]:
        infrastructure = self._gateway.spec.get("infrastructure")
        reference = (
            infrastructure.get("parametersRef") if isinstance(infrastructure, dict) else None
        )
        if not reference:
            return {}
        where, name = "spec.infrastructure.parametersRef", parameters_name(self._gateway)
        if not name:
            self._report(where, "only a ConfigMap is supported", Severity.ERROR)
            return {}
        if self._live.parameters is None:
            self._report(where, f"ConfigMap {name} does not exist", Severity.ERROR)
            return {}
        return self._parse(name, self._live.parameters)

    def _parse(self, name: str, parameters: Mapping[str, str]) -> dict[OverlayKey, Json]:
        found: dict[OverlayKey, Json] = {}
        for text in sorted(parameters):
            where = f"ConfigMap {name}: {text}"
            if text not in [key.value for key in OverlayKey]:
                self._report(where, "unknown key")
                continue
            key = OverlayKey(text)
            try:
                overlay = parse_overlay(parameters[text])
            except OverlayError as error:
                self._report(where, str(error), Severity.ERROR)
                continue
            found[key] = restrict(key, overlay, lambda path, at=where: self._not_honoured(at, path))  # type: ignore[misc]
        return found

    def _not_honoured(self, where: str, path: str) -> None:
        self._report(f"{where}: {path}", "not honoured: the field is not configurable")

    def _report(self, where: str, message: str, severity: Severity = Severity.IGNORED) -> None:
        self.problems.append(
            Problem(
                kind="Gateway",
                namespace=self._gateway.namespace,
                name=self._gateway.name,
                field=where,
                message=message,
                severity=severity,
                reason="InvalidParameters",
            )
        )


def _is_reserved(annotation: str) -> bool:
    return annotation in _RESERVED_ANNOTATIONS or annotation.startswith(_OWN_DOMAIN)


def _port(name: str, number: int, protocol: str) -> Json:
    return {
        "name": name,
        "port": number,
        "targetPort": number,
        "protocol": "TCP",
        "appProtocol": protocol,
    }
