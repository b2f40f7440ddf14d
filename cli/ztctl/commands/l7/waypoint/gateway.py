# SPDX-License-Identifier: Apache-2.0
"""The Gateway of a waypoint: its manifest, and what its status contains. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ztctl.errors import CommandError
from ztunnel.kube.objects.waypoints import USE_WAYPOINT, USE_WAYPOINT_NAMESPACE, WAYPOINT_FOR
from ztunnel.l7.names import WAYPOINT_CLASSES
from ztunnel.l7.objects import L7_KINDS
from ztunnel.l7.status.gateway import HBONE_PROTOCOL
from ztunnel.mesh.ports import HBONE

Object = dict[str, Any]
KIND = "Gateway"
DEFAULT_NAME = "waypoint"
PROGRAMMED = "Programmed"


def gateway_manifest(name: str, namespace: str, traffic: str | None, class_name: str) -> Object:
    """The Gateway. `traffic`: value of the label istio.io/waypoint-for; None for the default."""
    metadata: Object = {"name": name, "namespace": namespace}
    if traffic is not None:
        metadata["labels"] = {WAYPOINT_FOR: traffic}
    return {
        "apiVersion": L7_KINDS[KIND].api_version,
        "kind": KIND,
        "metadata": metadata,
        "spec": {
            "gatewayClassName": class_name,
            "listeners": [{"name": "mesh", "port": HBONE, "protocol": HBONE_PROTOCOL}],
        },
    }


def namespace_labels(namespace: Object, waypoint: str, *, overwrite: bool) -> dict[str, str]:
    """The labels that enroll a namespace. Raises CommandError if it uses another waypoint."""
    labels = namespace["metadata"].get("labels") or {}
    current, where = labels.get(USE_WAYPOINT), labels.get(USE_WAYPOINT_NAMESPACE)
    name = namespace["metadata"]["name"]
    if not overwrite and (current not in (None, waypoint) or where not in (None, name)):
        place = f"{where or name}/{current}"
        raise CommandError(f"namespace {name} uses waypoint {place}; hint: --overwrite replaces it")
    return (
        {USE_WAYPOINT: waypoint}
        if where is None
        else {
            USE_WAYPOINT: waypoint,
            USE_WAYPOINT_NAMESPACE: name,
        }
    )


def is_waypoint(gateway: Object) -> bool:
    """Whether a Gateway is of a waypoint class."""
    return (gateway.get("spec") or {}).get("gatewayClassName") in WAYPOINT_CLASSES


def condition(gateway: Object, kind: str) -> Object:
    """A condition of the current generation; empty if there is none."""
    generation = gateway["metadata"].get("generation") or 0
    for each in (gateway.get("status") or {}).get("conditions") or ():
        if each.get("type") == kind and (each.get("observedGeneration") or 0) >= generation:
            return dict(each)
    return {}


def is_programmed(gateway: Object | None) -> bool:
    """Whether the waypoint serves connections."""
    return gateway is not None and condition(gateway, PROGRAMMED).get("status") == "True"


def list_rows(gateways: Iterable[Object]) -> Iterator[Object]:
    """Rows of `ztctl waypoint list`."""
    for each in sorted(gateways, key=_place):
        metadata = each["metadata"]
        addresses = (each.get("status") or {}).get("addresses") or ()
        yield {
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "class": each["spec"]["gatewayClassName"],
            "for": (metadata.get("labels") or {}).get(WAYPOINT_FOR, "service"),
            "addresses": [address["value"] for address in addresses],
            "programmed": is_programmed(each),
        }


def status_rows(
    gateways: Iterable[Object], foreign: Callable[[str], str] = lambda name: ""
) -> Iterator[Object]:
    """Rows of `ztctl waypoint status`: one per condition.

    `foreign`: the other controller that owns a class, or an empty text.
    """
    for each in sorted(gateways, key=_place):
        place = {"namespace": each["metadata"]["namespace"], "name": each["metadata"]["name"]}
        class_name = each["spec"]["gatewayClassName"]
        controller = foreign(class_name)
        if controller:
            yield {
                **place,
                "type": "Class",
                "status": "False",
                "reason": "ForeignController",
                "message": f"class {class_name} belongs to {controller}: ztunnel does not run "
                "the waypoint; hint: --class ztunnel-waypoint",
            }
        conditions = (each.get("status") or {}).get("conditions") or [{}]
        for one in conditions:
            yield {
                **place,
                "type": one.get("type", ""),
                "status": one.get("status", "Unknown"),
                "reason": one.get("reason", "NotReconciled"),
                "message": one.get("message", ""),
            }


def _place(gateway: Object) -> tuple[str, str]:
    return gateway["metadata"]["namespace"], gateway["metadata"]["name"]
