# SPDX-License-Identifier: Apache-2.0
"""Which pods of the node are captured: those that should be, and a little longer those that leave.

    enrolled --label gone--> marked --mark removed--> unmarked --LINGER--> let go

Other nodes speak HBONE to a pod until they see that its mark is gone; let go before, their
connections would be refused. Where no marks are made a pod is let go at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ztunnel.mesh.model import TunnelProtocol, Workload

LINGER = 0.5  # seconds other nodes have to see that the mark is gone
AT_MOST = 10.0  # seconds a pod is kept whose mark can't be removed


@dataclass
class UnenrollGraceEntry:
    """When a pod ceased to be enrolled, and to be marked, by the loop's clock."""

    enrolment: float
    mark: float | None = None


class UnenrollGrace:
    """`again` is called when the answer may have changed by time alone."""

    def __init__(self, again: Callable[[], None]) -> None:
        self._again = again
        self._left: dict[str, UnenrollGraceEntry] = {}

    def kept(self, pods: Iterable[Workload], captured: set[str]) -> dict[str, Workload]:
        """Of the node's pods those to capture, by pod uid; `captured` are those that are now."""
        pods = [pod for pod in pods if not pod.host_network]
        kept = {pod.pod_uid: pod for pod in pods if pod.enrolled}
        candidates = {pod.pod_uid: pod for pod in pods if pod.pod_uid in captured - kept.keys()}
        self._left = {uid: self._left[uid] for uid in self._left.keys() & candidates.keys()}
        for uid, pod in candidates.items():
            if self._lingers(pod, uid):
                kept[uid] = pod
        return kept

    def _lingers(self, pod: Workload, uid: str) -> bool:
        loop = asyncio.get_running_loop()
        now, is_marked = loop.time(), pod.protocol is TunnelProtocol.HBONE
        left = self._left.get(uid)
        if left is None:
            if not is_marked:
                return False
            left = self._left[uid] = UnenrollGraceEntry(enrolment=now)
            loop.call_later(AT_MOST, self._again)
        if not is_marked and left.mark is None:
            left.mark = now
            loop.call_later(LINGER, self._again)
        ends = left.enrolment + AT_MOST
        if left.mark is not None:
            ends = min(ends, left.mark + LINGER)
        return now < ends - 0.001
