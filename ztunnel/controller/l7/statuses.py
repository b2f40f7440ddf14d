# SPDX-License-Identifier: Apache-2.0
"""Writes the status of Services, ServiceEntries, routes and policies of L7.

    object, or what it refers to, changes ──▶ `Computers.pending` ──▶ apply, if it differs

Rate limited per namespace. A status that another controller owns is left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from ztunnel.controller.l7.computers import Computers, Pending
from ztunnel.controller.l7.namespace_rate import NamespaceRate
from ztunnel.controller.l7.object_client import ObjectClient, Ref
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.client.request import CONFLICT, ApiError

log = structlog.get_logger()


class Statuses:
    """Thread-safe."""

    def __init__(
        self,
        client: ObjectClient,
        watches: Watches,
        computers: Computers,
        clock: Callable[[], float],
    ) -> None:
        """`clock` is monotonic, in seconds."""
        self._client = client
        self._watches = watches
        self._computers = computers
        self._clock = clock
        self._rate = NamespaceRate(clock)
        self._conflicts: set[Ref] = set()  # reported
        self._due: dict[Ref, float] = {}  # when it is the turn of a delayed write

    def reconcile(self, ref: Ref) -> float | None:
        """Write a status if it is outdated; returns in how many seconds to repeat, if limited."""
        pending = self._pending(ref)
        if pending is None:
            self._due.pop(ref, None)
            return None
        delay_s = self._delay_s(ref)
        if delay_s > 0:
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
        for kind in self._computers.kinds:
            for obj in self._watches.objects(kind):
                metadata = obj["metadata"]
                ref = Ref(kind, metadata.get("namespace") or "", metadata["name"])
                if ref not in self._conflicts and self._pending(ref) is not None:
                    found.append(ref)
        return found

    def _pending(self, ref: Ref) -> Pending | None:
        obj = self._watches.of(ref)
        if obj is None:
            self._conflicts.discard(ref)
            return None
        return self._computers.pending(obj)

    def _delay_s(self, ref: Ref) -> float:
        """How long a write must wait; each write reserves its turn once."""
        now = self._clock()
        due = self._due.get(ref)
        if due is None:
            due = now + self._rate.reserve_s(ref.namespace)
        if due <= now:
            self._due.pop(ref, None)
            return 0.0
        self._due[ref] = due
        return due - now

    def _report_conflict(self, ref: Ref) -> None:
        if ref not in self._conflicts:
            self._conflicts.add(ref)
            log.info("status not written: owned by another controller", object=str(ref))
