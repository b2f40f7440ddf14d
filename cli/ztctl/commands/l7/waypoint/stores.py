# SPDX-License-Identifier: Apache-2.0
"""Where waypoints are: a cluster or a lab."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from ztctl.cluster.api_client import ApiServer, Progress
from ztctl.commands.l7.waypoint.gateway import (
    KIND,
    PROGRAMMED,
    condition,
    is_programmed,
    is_waypoint,
)
from ztctl.context import Context
from ztctl.errors import CommandError
from ztunnel.l7.deployment.settings import CONTROLLER_NAME, GATEWAY_LABEL
from ztunnel.l7.objects import L7_KINDS, l7_object
from ztunnel.l7.status.facts import GatewayFacts, ip_addresses
from ztunnel.l7.status.gateway import gateway_status

Object = dict[str, Any]


class WaypointStore(Protocol):
    """Every method raises CommandError. `namespace` None: all namespaces."""

    def get(self, namespace: str, name: str) -> Object | None:
        """The Gateway, with its status."""

    def gateways(self, namespace: str | None) -> list[Object]:
        """All Gateways of waypoint classes, with their status."""

    def foreign_controller(self, class_name: str) -> str:
        """The other controller that owns a GatewayClass; empty if ztunnel does."""

    def apply(self, gateway: Object) -> None:
        """Create or update the Gateway."""

    def delete(self, namespace: str, name: str) -> bool:
        """Delete the Gateway; False if it does not exist."""

    def namespace(self, name: str) -> Object | None:
        """The Namespace."""

    def label_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        """Set labels."""

    def wait(self, namespace: str, name: str, timeout_s: float) -> str:
        """Wait until the Gateway is programmed; returns why it is not, or an empty text."""


@contextmanager
def waypoint_store(context: Context) -> Iterator[WaypointStore]:
    """The selected lab, or the selected cluster."""
    if context.selection.lab:
        yield _LabStore(context.selection.lab)
        return
    api_server = context.api_server()
    try:
        yield _ClusterStore(api_server)
    finally:
        api_server.close()


class _ClusterStore:
    def __init__(self, api_server: ApiServer) -> None:
        self._api_server = api_server

    def get(self, namespace: str, name: str) -> Object | None:
        found = self._api_server.get(_reference(namespace, name))
        return found if found is not None and is_waypoint(found) else None

    def gateways(self, namespace: str | None) -> list[Object]:
        path = f"/apis/{L7_KINDS[KIND].api_version}"
        place = f"/namespaces/{namespace}" if namespace else ""
        return [
            each for each in self._api_server.list(f"{path}{place}/gateways") if is_waypoint(each)
        ]

    def foreign_controller(self, class_name: str) -> str:
        reference = {
            "apiVersion": L7_KINDS["GatewayClass"].api_version,
            "kind": "GatewayClass",
            "metadata": {"name": class_name},
        }
        found = self._api_server.get(reference) or {}
        controller = (found.get("spec") or {}).get("controllerName") or CONTROLLER_NAME
        return "" if controller == CONTROLLER_NAME else str(controller)

    def apply(self, gateway: Object) -> None:
        self._api_server.apply(gateway, dry_run=False, force=True)

    def delete(self, namespace: str, name: str) -> bool:
        return self._api_server.delete(_reference(namespace, name))

    def namespace(self, name: str) -> Object | None:
        return self._api_server.get(_namespace(name))

    def label_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        obj = _namespace(name)
        obj["metadata"]["labels"] = dict(labels)
        self._api_server.apply(obj, dry_run=False, force=True)

    def wait(self, namespace: str, name: str, timeout_s: float) -> str:
        def progress() -> Progress:
            gateway = self.get(namespace, name)
            return Progress(is_programmed(gateway), _reason(gateway))

        if self._api_server.wait(progress, timeout_s, lambda text: None):
            return ""
        return _reason(self.get(namespace, name))


class _LabStore:
    """The lab has no controller: the status is computed from its pods."""

    def __init__(self, name: str) -> None:
        from ztunnel.lab import Lab  # noqa: PLC0415  not installed for clusters

        self._lab = Lab(name)

    def get(self, namespace: str, name: str) -> Object | None:
        found = (each for each in self.gateways(namespace) if each["metadata"]["name"] == name)
        return next(found, None)

    def gateways(self, namespace: str | None) -> list[Object]:
        with _lab_errors():
            objects = list(self._lab.store.load().values())
            ready = {
                (pod["namespace"], pod["name"])
                for pod in self._lab.status()["pods"]
                if pod["ready"]
            }
        return [
            _with_status(each, objects, ready)
            for each in objects
            if each["kind"] == KIND
            and is_waypoint(each)
            and namespace in (None, each["metadata"]["namespace"])
        ]

    def foreign_controller(self, class_name: str) -> str:
        return ""

    def apply(self, gateway: Object) -> None:
        self._do(lambda: self._lab.apply(gateway, wait=False))

    def delete(self, namespace: str, name: str) -> bool:
        if self.get(namespace, name) is None:
            return False
        self._do(lambda: self._lab.delete(KIND, name, namespace))
        return True

    def namespace(self, name: str) -> Object | None:
        with _lab_errors():
            found = (
                each
                for each in self._lab.store.load().values()
                if each["kind"] == "Namespace" and each["metadata"]["name"] == name
            )
            return next(found, None)

    def label_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        with _lab_errors():
            self._lab.label("Namespace", name, labels)

    def wait(self, namespace: str, name: str, timeout_s: float) -> str:
        gateway = self.get(namespace, name)
        if gateway is None:
            return _reason(gateway)
        unchanged = {key: value for key, value in gateway.items() if key != "status"}
        with _lab_errors():  # the lab's kubelet runs during its commands only
            problems = self._lab.apply(unchanged, timeout=timeout_s)
        found = self.get(namespace, name)
        return "" if is_programmed(found) else "; ".join([_reason(found), *problems])

    def _do(self, change: Callable[[], list[str]]) -> None:
        with _lab_errors():
            problems = change()
        if problems:
            raise CommandError("; ".join(problems))


@contextmanager
def _lab_errors() -> Iterator[None]:
    from ztunnel.lab import LabError  # noqa: PLC0415

    try:
        yield
    except LabError as error:
        raise CommandError(str(error)) from error


def _with_status(gateway: Object, objects: list[Object], ready: set[tuple[str, str]]) -> Object:
    """The Gateway with the status that a controller would write."""
    metadata = gateway["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    pods = [
        (namespace, each["metadata"]["name"])
        for each in objects
        if each["kind"] == "Pod"
        and each["metadata"].get("namespace") == namespace
        and (each["metadata"].get("labels") or {}).get(GATEWAY_LABEL) == name
    ]
    addresses = [
        address
        for each in objects
        if each["kind"] == "Service"
        and (each["metadata"].get("namespace"), each["metadata"]["name"]) == (namespace, name)
        for address in each["spec"].get("clusterIPs") or ()
    ]
    facts = GatewayFacts(
        addresses=ip_addresses(addresses), wanted=len(pods), ready=len(ready.intersection(pods))
    )
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**gateway, "status": gateway_status(l7_object(gateway), facts, {}, now)}


def _reason(gateway: Object | None) -> str:
    if gateway is None:
        return "it does not exist"
    message = condition(gateway, PROGRAMMED).get("message")
    return str(message or "no controller has reconciled it; hint: `ztctl status`")


def _reference(namespace: str, name: str) -> Object:
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": L7_KINDS[KIND].api_version, "kind": KIND, "metadata": metadata}


def _namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
