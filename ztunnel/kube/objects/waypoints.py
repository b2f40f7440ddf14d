# SPDX-License-Identifier: Apache-2.0
"""Reads which waypoint an object uses, and which traffic and namespaces a Gateway accepts. Pure.

Sources: istio.io, "Configure waypoint proxies", and pilot/pkg/serviceregistry/kube/controller/
ambient/waypoints.go of Istio for the precedence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ztunnel.kube.objects.fields import Fields, Object, TranslateError, key_of
from ztunnel.mesh.ports import HBONE
from ztunnel.mesh.selectors import Selector, SelectorError, from_object, selects

USE_WAYPOINT = "istio.io/use-waypoint"
USE_WAYPOINT_NAMESPACE = "istio.io/use-waypoint-namespace"
INGRESS_USE_WAYPOINT = "istio.io/ingress-use-waypoint"  # of a Service, ServiceEntry or Namespace
NO_WAYPOINT = "none"  # value of USE_WAYPOINT: overrides the namespace's waypoint
WAYPOINT_FOR = "istio.io/waypoint-for"
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"  # of a Gateway's pods and Service
REQUIRE_WAYPOINT = "ztunnel.dev/require-waypoint"  # a label or an annotation


class Traffic(StrEnum):
    """The traffic that a waypoint accepts: values of the label istio.io/waypoint-for."""

    SERVICE = "service"
    WORKLOAD = "workload"
    ALL = "all"
    NONE = "none"


class From(StrEnum):
    """Whose objects may use a Gateway as their waypoint: `allowedRoutes.namespaces.from`."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the mesh needs of a Gateway. `selector`: the namespaces of From.SELECTOR.

    `traffic`: by its own label; None if its GatewayClass decides.
    """

    namespace: str
    name: str
    gateway_class: str
    traffic: Traffic | None
    namespaces: From
    selector: Selector = ()

    def admits(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether objects of a namespace with these labels may use the waypoint."""
        if namespace == self.namespace or self.namespaces is From.ALL:
            return True
        return self.namespaces is From.SELECTOR and selects((self.selector,), labels)


def read_gateway(obj: Object) -> Gateway:
    """Validate and parse a Gateway. Raises TranslateError."""
    key = key_of(obj)
    fields = Fields(obj, f"{key}: ")
    spec = fields.mapping("spec")
    gateway_class = spec.string("gatewayClassName")
    namespaces, selector = _namespaces(spec)
    return Gateway(key.namespace, key.name, gateway_class, read_traffic(obj), namespaces, selector)


def read_traffic(obj: Object) -> Traffic | None:
    """The label istio.io/waypoint-for of a Gateway or GatewayClass; None without it.

    Raises TranslateError.
    """
    key = key_of(obj)
    traffic = Fields(obj, f"{key}: ").mapping("metadata").labels("labels").get(WAYPOINT_FOR)
    if traffic is None:
        return None
    if traffic not in set(Traffic):
        raise TranslateError(
            f"{key}: label {WAYPOINT_FOR} is {traffic!r:.40}, want service, workload, all or none"
        )
    return Traffic(traffic)


def _namespaces(spec: Fields) -> tuple[From, Selector]:
    """The allowedRoutes of the HBONE listener; without one, as in Istio, the Gateway's own."""
    for listener in spec.mappings("listeners"):
        if listener.port("port") != HBONE:
            continue
        namespaces = listener.mapping("allowedRoutes").mapping("namespaces")
        text = namespaces.string("from") or From.SAME.value
        if text not in set(From):
            raise namespaces.error("from", "Same, All or Selector")
        if text != From.SELECTOR:
            return From(text), ()
        try:
            return From.SELECTOR, from_object(namespaces.raw("selector"))
        except SelectorError as error:
            raise namespaces.error("selector", "a label selector") from error
    return From.SAME, ()


def requested_waypoint(labels: Mapping[str, str], namespace: str) -> str | None:
    """The `namespace/name` that the labels of an object, or of a namespace, request.

    None without the label; empty if the label opts out.
    """
    name = labels.get(USE_WAYPOINT)
    if name is None:
        return None
    if name == NO_WAYPOINT:
        return ""
    return f"{labels.get(USE_WAYPOINT_NAMESPACE) or namespace}/{name}"


def ingress_uses_waypoint(labels: Mapping[str, str], namespace_labels: Mapping[str, str]) -> bool:
    """Whether ingress gateways reach an object through its waypoint; its own label decides first.

    As in Istio, every value but `true` (in any case) means no.
    """
    value = labels.get(INGRESS_USE_WAYPOINT, namespace_labels.get(INGRESS_USE_WAYPOINT, ""))
    return value.lower() == "true"


def gateway_of(labels: Mapping[str, str], namespace: str) -> str:
    """The `namespace/name` of the Gateway that an object belongs to; empty for none."""
    name = labels.get(GATEWAY_NAME, "")
    return f"{namespace}/{name}" if name else ""


def requires_waypoint(labels: Mapping[str, str], annotations: Mapping[str, str]) -> bool | None:
    """Whether only the waypoint may connect; None if neither a label nor an annotation decides.

    Every value but `false` requires it: a typo does not open a pod.
    """
    value = annotations.get(REQUIRE_WAYPOINT, labels.get(REQUIRE_WAYPOINT))
    return None if value is None else value.strip().lower() != "false"
