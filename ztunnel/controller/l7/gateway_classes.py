# SPDX-License-Identifier: Apache-2.0
"""Our GatewayClasses: creates them, accepts them, and leaves those of others alone.

istio-waypoint, ztunnel-waypoint   waypoints
istio, ztunnel                     ingress gateways
  absent                           created, with our controllerName
  with our controllerName          its Gateways are run, condition Accepted
  with another controllerName      ignored and reported: istiod is present
"""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from ztunnel.controller.l7.object_client import ObjectClient, Ref, api_version
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.client.request import FORBIDDEN, ApiError
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.deployment.settings import CONTROLLER_NAME, INGRESS_CONTROLLER_NAME
from ztunnel.l7.names import INGRESS_CLASSES, WAYPOINT_CLASSES, is_ingress_class
from ztunnel.l7.status.conditions import has_conditions, render_conditions
from ztunnel.l7.status.features import SUPPORTED_FEATURES
from ztunnel.l7.status.gateway import class_conditions

KIND = "GatewayClass"
OUR_CLASSES = (*WAYPOINT_CLASSES, *INGRESS_CLASSES)
_WAYPOINTS = "Waypoints for services and workloads, run by ztunnel with Envoy"
_INGRESS = "Ingress gateways, run by ztunnel with Envoy"
_CRD = Ref("CustomResourceDefinition", "", "gatewayclasses.gateway.networking.k8s.io")
_VERSION_ANNOTATION = "gateway.networking.k8s.io/bundle-version"
_CONTROLLERS = (CONTROLLER_NAME, INGRESS_CONTROLLER_NAME)
# Nodes know classes by name; the Gateway API still demands the condition Accepted.
_NOT_SERVED = f"Gateways of this class are not served; hint: use one of {', '.join(OUR_CLASSES)}"

log = structlog.get_logger()


def controller_of(gateway_class: Object) -> str:
    """`spec.controllerName`."""
    spec = gateway_class.get("spec")
    return str(spec.get("controllerName") or "") if isinstance(spec, dict) else ""


def our_controller(name: str) -> str:
    """The controllerName that a class of ours has."""
    return INGRESS_CONTROLLER_NAME if is_ingress_class(name) else CONTROLLER_NAME


def is_our_class(gateway_class: Object) -> bool:
    """Whether a GatewayClass, of whatever name, names this controller."""
    return controller_of(gateway_class) in _CONTROLLERS


class GatewayClasses:
    """Thread-safe."""

    def __init__(self, client: ObjectClient, watches: Watches) -> None:
        self._client = client
        self._watches = watches
        self._foreign: dict[str, str] = {}  # reported: class → controller

    def is_ours(self, name: str) -> bool:
        """Whether this controller runs the Gateways of a class."""
        found = self._watches.get(KIND, "", name)
        is_known = found is not None and name in OUR_CLASSES
        return is_known and controller_of(found or {}) == our_controller(name)

    def is_foreign(self, name: str) -> bool:
        """Whether another controller runs the Gateways of a class.

        A class of ours that is missing, because a user deleted it, is created again.
        """
        found = self._watches.get(KIND, "", name)
        is_missing = found is None and name in OUR_CLASSES
        return not is_missing and not self.is_ours(name)

    def foreign_controller(self, name: str) -> str:
        """The other controller of a class; empty if the class does not exist or is ours."""
        found = self._watches.get(KIND, "", name)
        controller = controller_of(found) if found is not None else ""
        return "" if controller in _CONTROLLERS else controller

    def reconcile(self, name: str) -> None:
        """Create the class or write its status. On any exception the caller retries."""
        if not self._watches.is_listed(KIND):
            return
        found = self._watches.get(KIND, "", name)
        if found is None:
            if name in OUR_CLASSES and self._client.get(Ref(KIND, "", name)) is None:
                self._client.apply(_new_class(name))
                log.info("gateway class created", gateway_class=name)
            return
        controller = controller_of(found)
        if controller not in _CONTROLLERS:
            self._report_foreign(name, controller)
            return
        self._foreign.pop(name, None)
        self._accept(found)
        if name not in OUR_CLASSES:
            self._client.emit_event(found, "MeshGatewayInvalid", _NOT_SERVED)

    def _accept(self, obj: Object) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = obj["metadata"]
        before = obj.get("status")
        known = before if isinstance(before, dict) else {}
        ours = class_conditions(controller_of(obj), self._api_version())
        generation = int(metadata.get("generation") or 0)
        conditions = render_conditions(ours, known.get("conditions"), generation, now)
        status: Object = {"conditions": conditions}
        if controller_of(obj) == INGRESS_CONTROLLER_NAME:
            status["supportedFeatures"] = [{"name": name} for name in SUPPORTED_FEATURES]
        is_same = has_conditions(known.get("conditions"), conditions) and (
            known.get("supportedFeatures") == status.get("supportedFeatures")
        )
        if not is_same:
            self._client.apply_status(obj, status, force=True)

    def _api_version(self) -> str:
        """The version of the Gateway API that is installed; empty if that is unknown."""
        try:
            found = self._client.get(_CRD)
        except ApiError as error:
            if error.status != FORBIDDEN:
                raise
            return ""  # the rest of the status does not depend on it
        annotations = (found or {}).get("metadata", {}).get("annotations") or {}
        return str(annotations.get(_VERSION_ANNOTATION) or "")

    def _report_foreign(self, name: str, controller: str) -> None:
        if name in OUR_CLASSES and self._foreign.get(name) != controller:
            self._foreign[name] = controller
            log.warning(
                "gateway class ignored: owned by another controller",
                gateway_class=name,
                controller=controller,
                hint="use the class ztunnel, or ztunnel-waypoint for waypoints",
            )


def _new_class(name: str) -> Object:
    return {
        "apiVersion": api_version(KIND),
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {
            "controllerName": our_controller(name),
            "description": _INGRESS if is_ingress_class(name) else _WAYPOINTS,
        },
    }
