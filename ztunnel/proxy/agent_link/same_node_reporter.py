# SPDX-License-Identifier: Apache-2.0
"""Tells the agent which connections between pods of this node we have let in.

The agent may then let the kernel connect such pods without us; it judges by itself whether it may
(`ztunnel.agent.traffic.same_node`). Connections to a virtual address come here each time, so the
same news
is told once a second at most.
"""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.ipc.messages import SameNodeAllowed
from ztunnel.mesh.routing.decisions import Accept

AGAIN = 1.0  # seconds until the same is worth telling again: the agent may have taken it back
MOST = 4096  # pairs remembered


class SameNodeReporter:
    """What was told when. `revision` is that of the mesh state we decide by; 0 when it is none
    that the agent knows whole."""

    def __init__(self, tell: Callable[[SameNodeAllowed], None], clock: Callable[[], float]) -> None:
        self.revision = 0
        self._tell = tell
        self._clock = clock
        self._when: dict[SameNodeAllowed, float] = {}

    def report_allowed(self, accepted: Accept, pod_uid: str) -> None:
        """A pod of this node was let in by its proven identity and its believed address."""
        source = accepted.source
        if source is None or source.node != accepted.workload.node or not self.revision:
            return
        news = SameNodeAllowed(
            source_ip=accepted.client.ip,
            source_identity=source.identity,
            pod_uid=pod_uid,
            destination=accepted.destination,
            revision=self.revision,
        )
        now = self._clock()
        if now - self._when.get(news, -AGAIN) < AGAIN:
            return
        if len(self._when) >= MOST:
            self._when.clear()
        self._when[news] = now
        self._tell(news)
