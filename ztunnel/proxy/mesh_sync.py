# SPDX-License-Identifier: Apache-2.0
"""Applies the agent's mesh deltas to a worker's mesh state, and enforces what changed.

no state --reset--> receiving a snapshot --complete--> in sync --delta--> in sync
                                                          | reset
                                                          v
                                        receiving a snapshot (the previous state stays in use)
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from ztunnel.ipc.messages import MeshDelta
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.agent_link.same_node_reporter import SameNodeReporter
from ztunnel.proxy.context import Context
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tunnel.pool_key import PoolKey

log = structlog.get_logger()


class MeshSync:
    """One per worker. `pods` are the local pods by uid."""

    def __init__(
        self, context: Context, pods: Mapping[str, Pod], same_node: SameNodeReporter
    ) -> None:
        self._context = context
        self._pods = pods
        self._same_node = same_node
        self._snapshot: MeshState | None = None  # incomplete
        self._parts: list[MeshDelta] = []  # of an incomplete revision

    def session_started(self) -> None:
        """The agent may be another one, to which the present revision means nothing."""
        self._same_node.revision = 0

    def apply(self, delta: MeshDelta) -> None:
        """Apply a delta; a revision in several parts takes effect with its last part."""
        self._same_node.revision = 0
        delta = delta.expanded()
        if delta.reset:
            self._snapshot = MeshState(delta.registry_only, same_node_direct=delta.same_node_direct)
            self._parts.clear()
        if self._snapshot is not None:
            self._snapshot.apply(delta)
            if delta.complete:
                self._context.mesh, self._snapshot = self._snapshot, None
                log.info("mesh synced", revision=delta.revision)
                self._enforce(delta.revision, recheck=True)
        elif self._context.mesh is None:
            log.warning("mesh delta without snapshot", revision=delta.revision)
        else:
            self._parts.append(delta)
            if not delta.more:
                self._apply_parts(self._context.mesh)

    def _apply_parts(self, mesh: MeshState) -> None:
        """Apply all parts before anything is decided: between parts a policy could be missing."""
        parts, self._parts = self._parts, []
        for part in parts:
            self._context.recent_destinations.note(mesh, part, self._context.loop.now)
            mesh.apply(part)
        self._enforce(parts[-1].revision, recheck=any(map(self._affects_admission, parts)))

    def _affects_admission(self, delta: MeshDelta) -> bool:
        """Whether the delta may change which connections to local pods are allowed."""
        changed = {workload.uid for workload in delta.workloads}.union(delta.removed_workloads)
        local = {pod.workload for pod in self._pods.values()}
        return bool(delta.policies or delta.removed_policies or changed & local)

    def _enforce(self, revision: int, *, recheck: bool) -> None:
        """Terminate connections that are no longer allowed; drain tunnels to changed workloads."""
        mesh = self._context.mesh
        if recheck and mesh is not None:
            self._context.admissions.recheck(mesh)
        self._same_node.revision = revision
        self._context.pool.invalidate(self._is_stale, "workload changed", fail_waiting=True)

    def _is_stale(self, key: PoolKey) -> bool:
        """Whether the tunnel's address no longer belongs to the workload it was opened to."""
        mesh = self._context.mesh
        workload = mesh.workload_at(key.address.ip) if mesh is not None else None
        return workload is None or (workload.uid, workload.pod_uid) != (
            key.workload,
            key.workload_pod,
        )
