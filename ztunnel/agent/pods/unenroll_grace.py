# SPDX-License-Identifier: Apache-2.0
"""Selects the pods to capture: the enrolled ones, and for a grace period those that were.

    enrolled --label removed--> annotated --annotation removed--> grace period --> released

Other nodes use HBONE for a pod until they observe that its annotation is removed. If the pod were
released earlier, their connections would be refused. A pod without the annotation is released at
once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ztunnel.mesh.model import TunnelProtocol, Workload

PROPAGATION_S = 0.5  # for other nodes to observe that the annotation is removed
MAX_GRACE_S = 10.0  # for a pod whose annotation can't be removed


@dataclass
class UnenrollGraceEntry:
    """When a pod was unenrolled, and when its annotation was removed, by the loop's clock."""

    unenrolled_at: float
    annotation_removed_at: float | None = None


class UnenrollGrace:
    """Tracks the pods in their grace period."""

    def __init__(self, on_timer: Callable[[], None]) -> None:
        """`on_timer` is called when the result of `select` may change by time alone."""
        self._on_timer = on_timer
        self._entries: dict[str, UnenrollGraceEntry] = {}

    def select(self, pods: Iterable[Workload], captured: set[str]) -> dict[str, Workload]:
        """The pods of the node to capture, by pod uid; `captured` are the currently selected."""
        pods = [pod for pod in pods if not pod.host_network]
        selected = {pod.pod_uid: pod for pod in pods if pod.enrolled}
        leaving = {pod.pod_uid: pod for pod in pods if pod.pod_uid in captured - selected.keys()}
        self._entries = {uid: self._entries[uid] for uid in self._entries.keys() & leaving.keys()}
        for uid, pod in leaving.items():
            if self._is_in_grace(pod, uid):
                selected[uid] = pod
        return selected

    def _is_in_grace(self, pod: Workload, uid: str) -> bool:
        loop = asyncio.get_running_loop()
        now, is_annotated = loop.time(), pod.protocol is TunnelProtocol.HBONE
        entry = self._entries.get(uid)
        if entry is None:
            if not is_annotated:
                return False
            entry = self._entries[uid] = UnenrollGraceEntry(unenrolled_at=now)
            loop.call_later(MAX_GRACE_S, self._on_timer)
        if not is_annotated and entry.annotation_removed_at is None:
            entry.annotation_removed_at = now
            loop.call_later(PROPAGATION_S, self._on_timer)
        ends_at = entry.unenrolled_at + MAX_GRACE_S
        if entry.annotation_removed_at is not None:
            ends_at = min(ends_at, entry.annotation_removed_at + PROPAGATION_S)
        return now < ends_at - 0.001
