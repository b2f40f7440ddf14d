# SPDX-License-Identifier: Apache-2.0
"""Writes the status of Services, ServiceEntries, routes and policies of L7.

    object, or what it refers to, changes ──▶ `pending` (pure) ──▶ apply, if it differs

Rate limited per namespace. A status that another controller owns is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog

from ztunnel.controller.l7.gateway_classes import GatewayClasses
from ztunnel.controller.l7.model import Model
from ztunnel.controller.l7.namespace_rate import NamespaceRate
from ztunnel.controller.l7.object_client import ObjectClient, Ref
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.client.request import CONFLICT, ApiError
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.status.conditions import Condition, has_conditions, render_conditions
from ztunnel.l7.status.service import WAYPOINT_BOUND, waypoint_bound
from ztunnel.mesh.model import Service

log = structlog.get_logger()


class Pending(NamedTuple):
    """A status to apply. `force`: it has the entries of other controllers, too."""

    obj: Object
    status: Object
    force: bool
    problems: tuple[str, ...] = ()


class Statuses:
    """Thread-safe. `is_ready`: whether a Gateway, `namespace/name`, has a ready pod."""

    def __init__(
        self,
        client: ObjectClient,
        watches: Watches,
        model: Model,
        *,
        classes: GatewayClasses,
        rate: NamespaceRate,
        is_ready: Callable[[str], bool],
    ) -> None:
        self._client = client
        self._watches = watches
        self._model = model
        self._classes = classes
        self._rate = rate
        self._is_ready = is_ready
        self._conflicts: set[Ref] = set()  # reported
        self._computers: dict[str, Callable[[Inputs, Object, str], Pending | None]] = {
            "Service": self._service,
            "ServiceEntry": self._service_entry,
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that have a status of ours."""
        return tuple(self._computers)

    def reconcile(self, ref: Ref) -> float | None:
        """Write a status if it is outdated; returns in how many seconds to repeat, if limited."""
        pending = self.pending(ref)
        if pending is None:
            return None
        delay_s = self._rate.delay_s(ref.namespace)
        if delay_s:
            return delay_s
        try:
            self._client.apply_status(pending.obj, pending.status, force=pending.force)
        except ApiError as error:
            if error.status != CONFLICT or pending.force:  # a retry reads the object again
                raise
            self._report_conflict(ref)
        for problem in pending.problems:
            self._client.emit_event(pending.obj, "MeshConfigurationProblem", problem)
        return None

    def outdated(self) -> list[Ref]:
        """All objects whose status differs from the wanted one."""
        found = []
        for kind in self._computers:
            for obj in self._watches.objects(kind):
                metadata = obj["metadata"]
                ref = Ref(kind, metadata.get("namespace") or "", metadata["name"])
                if ref not in self._conflicts and self.pending(ref) is not None:
                    found.append(ref)
        return found

    def pending(self, ref: Ref) -> Pending | None:
        """The status to write; None if the object has it or does not exist."""
        obj = self._watches.of(ref)
        if obj is None:
            self._conflicts.discard(ref)
            return None
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._model.inputs() as inputs:
            return self._computers[ref.kind](inputs, obj, now)

    def _report_conflict(self, ref: Ref) -> None:
        if ref not in self._conflicts:
            self._conflicts.add(ref)
            log.info("status not written: owned by another controller", object=str(ref))

    # One method per kind

    def _service(self, inputs: Inputs, obj: Object, now: str) -> Pending | None:
        metadata = obj["metadata"]
        found = inputs.mesh.service(f"{metadata['namespace']}/{metadata['name']}")
        return self._bound(obj, [found] if found is not None else [], now)

    def _service_entry(self, inputs: Inputs, obj: Object, now: str) -> Pending | None:
        metadata, spec = obj["metadata"], obj.get("spec")
        hosts = spec.get("hosts") if isinstance(spec, dict) else None
        found = (
            inputs.mesh.service(f"{metadata['namespace']}/{host}")
            for host in (hosts if isinstance(hosts, list) else ())
        )
        return self._bound(obj, [each for each in found if each is not None], now)

    def _bound(self, obj: Object, services: list[Service], now: str) -> Pending | None:
        """The condition of an object by its services, which have the same waypoint."""
        condition: Condition | None = None
        for service in services[:1]:
            namespace, _, name = service.waypoint.partition("/")
            gateway = self._watches.get("Gateway", namespace, name)
            spec = gateway.get("spec") if gateway is not None else None
            class_name = str(spec.get("gatewayClassName")) if isinstance(spec, dict) else ""
            condition = waypoint_bound(
                service.waypoint,
                service.waypoint_error,
                exists=gateway is not None,
                ready=self._is_ready(service.waypoint),
                foreign=self._classes.foreign_controller(class_name),
            )
        status = obj.get("status")
        before = status.get("conditions") if isinstance(status, dict) else None
        generation = int(obj["metadata"].get("generation") or 0)
        wanted = render_conditions([condition] if condition else [], before, generation, now)
        is_current = has_conditions(before, wanted) if condition else not _has(before)
        if is_current:
            return None
        return Pending(obj, {"conditions": wanted}, force=False)


def _has(conditions: Any) -> bool:
    return any(
        isinstance(each, dict) and each.get("type") == WAYPOINT_BOUND for each in conditions or ()
    )
