# SPDX-License-Identifier: Apache-2.0
"""Reports to the agent which connections between pods of this node policy allowed.

The agent may then let later connections of the pair bypass the proxy, after its own check
(`ztunnel.agent.traffic.same_node`). Connections to a service's virtual address never bypass the
proxy, so the same pair would be reported often: each is reported once per REPEAT_INTERVAL_S.
"""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.ipc.messages import SameNodeAllowed
from ztunnel.mesh.routing.decisions import Accept

REPEAT_INTERVAL_S = 1.0  # the agent may have revoked the bypass entry meanwhile
MAX_REMEMBERED = 4096  # reports


class SameNodeReporter:
    """One per worker. `revision` is the mesh revision that decisions are based on; 0 while it is
    not a complete revision of the present agent."""

    def __init__(self, send: Callable[[SameNodeAllowed], None], clock: Callable[[], float]) -> None:
        self.revision = 0
        self._send = send
        self._clock = clock
        self._sent_at: dict[SameNodeAllowed, float] = {}

    def report_allowed(self, accepted: Accept, pod_uid: str) -> None:
        """Report an allowed connection if its source, by proven identity, is a pod of this node."""
        source = accepted.source
        workload = accepted.workload
        if source is None or source.node != workload.node or not self.revision:
            return
        if workload.waypoint and workload.waypoint != source.gateway:
            return  # a client of an earlier state, or one that does not use the waypoint
        message = SameNodeAllowed(
            source_ip=accepted.client.ip,
            source_identity=source.identity,
            pod_uid=pod_uid,
            destination=accepted.destination,
            revision=self.revision,
        )
        now = self._clock()
        if now - self._sent_at.get(message, -REPEAT_INTERVAL_S) < REPEAT_INTERVAL_S:
            return
        if len(self._sent_at) >= MAX_REMEMBERED:
            self._sent_at.clear()
        self._sent_at[message] = now
        self._send(message)
