# SPDX-License-Identifier: Apache-2.0
"""What users configure of a Gateway's objects, besides listeners.

    spec.infrastructure                   labels, annotations, parametersRef (a ConfigMap)
    networking.istio.io/service-type      annotation: LoadBalancer (default), NodePort, ClusterIP
    ztunnel.dev/gateway-workload          annotation: Deployment (default), DaemonSet
    ztunnel.dev/gateway-host-ports        annotation: "true" binds the listeners' ports on the nodes
    spec.addresses                        the address that is requested of the load balancer

The annotations are those of the Gateway itself; waypoints have none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from ztunnel.l7.deployment.overlay import OverlayError, OverlayKey, parse_overlay, restrict
from ztunnel.l7.deployment.service import SERVICE_TYPE_ANNOTATION, ServiceType
from ztunnel.l7.deployment.settings import DeploymentSettings, Json
from ztunnel.l7.names import is_ingress_class
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION, SIDECAR_ANNOTATION

WORKLOAD_ANNOTATION = "ztunnel.dev/gateway-workload"
HOST_PORTS_ANNOTATION = "ztunnel.dev/gateway-host-ports"
IP_ADDRESS = "IPAddress"  # `type` of an address, which is the default (Gateway API)
_RESERVED_ANNOTATIONS = frozenset({SIDECAR_ANNOTATION, REDIRECTION_ANNOTATION})
_OWN_DOMAIN = "ztunnel.dev/"

Report = Callable[..., None]
Choice = TypeVar("Choice", bound=StrEnum)


class WorkloadKind(StrEnum):
    """The kind of object that runs the pods."""

    DEPLOYMENT = "Deployment"
    DAEMON_SET = "DaemonSet"


@dataclass(frozen=True)
class Options:
    """The annotations of a Gateway. `address`: requested of the load balancer, or empty."""

    service_type: ServiceType = ServiceType.LOAD_BALANCER
    workload: WorkloadKind = WorkloadKind.DEPLOYMENT
    host_ports: bool = False
    address: str = ""


class Problems:
    """Collects the problems of one Gateway."""

    def __init__(self, gateway: L7Object) -> None:
        self._gateway = gateway
        self.found: list[Problem] = []

    def report(self, where: str, message: str, severity: Severity = Severity.IGNORED) -> None:
        """Add a problem of the field or place `where`."""
        self.found.append(
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


def class_of(gateway: L7Object) -> str:
    """`spec.gatewayClassName`."""
    return str(gateway.spec.get("gatewayClassName") or "")


def requested_addresses(gateway: L7Object) -> list[str]:
    """The IP addresses in `spec.addresses`, without those that the platform is to choose."""
    addresses = gateway.spec.get("addresses")
    return [
        each["value"]
        for each in (addresses if isinstance(addresses, list) else ())
        if isinstance(each, dict)
        and (each.get("type") or IP_ADDRESS) == IP_ADDRESS
        and isinstance(each.get("value"), str)
        and each["value"]
    ]


def read_options(gateway: L7Object, settings: DeploymentSettings, report: Report) -> Options:
    """The options of a Gateway. What cannot be honoured is an ERROR: nothing is changed then."""
    annotations = gateway.annotations
    if not is_ingress_class(class_of(gateway)):
        for name in (SERVICE_TYPE_ANNOTATION, WORKLOAD_ANNOTATION, HOST_PORTS_ANNOTATION):
            if name in annotations:
                report(_where(name), "has no effect: the Gateway is a waypoint")
        return Options(service_type=ServiceType.CLUSTER_IP)
    type_text = annotations.get(SERVICE_TYPE_ANNOTATION, ServiceType.LOAD_BALANCER.value)
    workload_text = annotations.get(WORKLOAD_ANNOTATION, WorkloadKind.DEPLOYMENT.value)
    service_type = _choice(ServiceType, SERVICE_TYPE_ANNOTATION, type_text, report)
    workload = _choice(WorkloadKind, WORKLOAD_ANNOTATION, workload_text, report)
    requested = requested_addresses(gateway)
    return Options(
        service_type=service_type or ServiceType.LOAD_BALANCER,
        workload=workload or WorkloadKind.DEPLOYMENT,
        host_ports=_host_ports(gateway, settings, workload, report),
        address=requested[0] if requested else "",
    )


def parameters_name(gateway: L7Object) -> str:
    """The ConfigMap, in the Gateway's namespace, that `parametersRef` names; empty if none."""
    reference = _infrastructure(gateway).get("parametersRef")
    if not isinstance(reference, dict):
        return ""
    is_config_map = reference.get("kind") == "ConfigMap" and not reference.get("group")
    name = reference.get("name")
    return name if is_config_map and isinstance(name, str) else ""


def names_parameters(obj: Json, namespace: str, name: str) -> bool:
    """Whether the `parametersRef` of a Gateway, as read, names a ConfigMap."""
    spec = obj.get("spec")
    infrastructure = spec.get("infrastructure") if isinstance(spec, dict) else None
    found = infrastructure.get("parametersRef") if isinstance(infrastructure, dict) else None
    is_here = obj["metadata"].get("namespace") == namespace
    return is_here and isinstance(found, dict) and found.get("name") == name


def infrastructure_metadata(
    gateway: L7Object, name: str, reserved: frozenset[str], report: Report
) -> dict[str, str]:
    """`spec.infrastructure.labels` or `annotations` (`name`), without reserved ones."""
    values = _infrastructure(gateway).get(name)
    found: dict[str, str] = {}
    for key, value in (values if isinstance(values, dict) else {}).items():
        if key in reserved or not isinstance(value, str) or is_reserved(key):
            report(f"spec.infrastructure.{name}", f"{key} is reserved for the mesh")
        else:
            found[key] = value
    return found


def read_overlays(
    gateway: L7Object, parameters: Mapping[str, str] | None, report: Report
) -> dict[OverlayKey, Json]:
    """The overlays in `parameters`, the data of the Gateway's ConfigMap; None: it is missing."""
    if not _infrastructure(gateway).get("parametersRef"):
        return {}
    where, name = "spec.infrastructure.parametersRef", parameters_name(gateway)
    if not name:
        report(where, "only a ConfigMap is supported", Severity.ERROR)
        return {}
    if parameters is None:
        report(where, f"ConfigMap {name} does not exist", Severity.ERROR)
        return {}
    is_ingress = is_ingress_class(class_of(gateway))
    found: dict[OverlayKey, Json] = {}
    for text in sorted(parameters):
        place = f"ConfigMap {name}: {text}"
        if text not in [key.value for key in OverlayKey]:
            report(place, "unknown key")
            continue
        try:
            overlay = parse_overlay(parameters[text])
        except OverlayError as error:
            report(place, str(error), Severity.ERROR)
            continue
        key = OverlayKey(text)
        found[key] = restrict(key, overlay, _not_honoured(place, report), is_ingress=is_ingress)
    return found


def is_reserved(annotation: str) -> bool:
    """Whether the mesh depends on an annotation of a pod, so that users may not set it."""
    return annotation in _RESERVED_ANNOTATIONS or annotation.startswith(_OWN_DOMAIN)


def _host_ports(
    gateway: L7Object,
    settings: DeploymentSettings,
    workload: WorkloadKind | None,
    report: Report,
) -> bool:
    value = gateway.annotations.get(HOST_PORTS_ANNOTATION, "false")
    where = _where(HOST_PORTS_ANNOTATION)
    if value not in ("true", "false"):
        report(where, f"{value[:40]!r} is neither true nor false", Severity.ERROR)
    if value != "true":
        return False
    if workload is not WorkloadKind.DAEMON_SET:
        message = f"needs {WORKLOAD_ANNOTATION}: {WorkloadKind.DAEMON_SET}; hint: two pods of a "
        report(where, message + "Deployment cannot bind a port of one node", Severity.ERROR)
        return False
    if not settings.permits_host_ports(gateway.namespace):
        message = f"namespace {gateway.namespace} may not bind ports of nodes; hint: start the "
        report(where, message + "controller with --host-port-namespace", Severity.ERROR)
        return False
    return True


def _choice(kind: type[Choice], annotation: str, text: str, report: Report) -> Choice | None:
    try:
        return kind(text)
    except ValueError:
        choices = ", ".join(each.value for each in kind)
        report(_where(annotation), f"{text[:40]!r} is none of {choices}", Severity.ERROR)
        return None


def _not_honoured(place: str, report: Report) -> Callable[[str], None]:
    def drop(path: str) -> None:
        hint = _HINTS.get(path.rpartition(".")[2], "")
        report(f"{place}: {path}", f"not honoured: the field is not configurable{hint}")

    return drop


_HINTS = {
    "hostNetwork": f"; hint: {HOST_PORTS_ANNOTATION} binds the nodes' ports. The mesh captures "
    "connections by network namespace, so that the pod needs its own",
    "externalIPs": "; hint: request an address of the load balancer in spec.addresses",
}


def _where(annotation: str) -> str:
    return f"metadata.annotations[{annotation}]"


def _infrastructure(gateway: L7Object) -> Json:
    found = gateway.spec.get("infrastructure")
    return found if isinstance(found, dict) else {}
