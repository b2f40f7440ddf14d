# SPDX-License-Identifier: Apache-2.0
"""Sends the mesh state to workers: a snapshot when one joins, then every change."""

from __future__ import annotations

import structlog

from ztunnel.agent.workers import delta_chunks
from ztunnel.agent.workers.handlers import SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.messages import MeshDelta
from ztunnel.kube.view.cluster_view import ClusterView, ViewChange
from ztunnel.kube.view.publisher import ViewConsumer

log = structlog.get_logger()


class MeshBroadcast(ViewConsumer, SessionObserver):
    """A worker that joins has the same state as one that received every change."""

    def __init__(
        self,
        view: ClusterView,
        sessions: SessionRegistry,
        *,
        registry_only: bool = False,
        same_node_direct: bool = False,
    ) -> None:
        self._view = view
        self._sessions = sessions
        self._registry_only = registry_only
        self._same_node_direct = same_node_direct

    def apply(self, change: ViewChange) -> None:
        if not change:
            return
        delta = MeshDelta(
            revision=change.revision,
            workloads=change.workloads,
            services=change.services,
            removed_workloads=change.removed_workloads,
            removed_services=change.removed_services,
            policies=change.policies,
            removed_policies=change.removed_policies,
        )
        try:
            for part in delta_chunks.change(delta):
                self._sessions.broadcast(part)
        except Exception:  # a defect: a worker that misses a part must not continue without it
            log.exception("mesh change not sent", revision=change.revision)
            for session in self._sessions.sessions:
                session.close("a change could not be sent")

    def joined(self, session: Session) -> None:
        now = self._view.snapshot()
        for part in delta_chunks.snapshot(
            now.revision,
            now.workloads,
            now.services,
            now.policies,
            registry_only=self._registry_only,
            same_node_direct=self._same_node_direct,
        ):
            packet = session.encode(part)
            session.raise_queue_limit(len(packet))
            session.send_packet(packet)
