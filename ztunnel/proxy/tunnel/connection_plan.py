# SPDX-License-Identifier: Apache-2.0
"""What all connections of a pod to one destination have in common, worked out for the first.

A plan is of one decision, the very object: `mesh.route` gives the same one until the mesh changes,
and then another. A plan keeps its decision alive, so no other gets its place in memory.
"""

from __future__ import annotations

from ztunnel.hbone.headers import encode
from ztunnel.mesh.model import Service, Workload
from ztunnel.mesh.routing.decisions import Hbone
from ztunnel.proxy.conntrack.record import Peer
from ztunnel.proxy.conntrack.tracker import make_peer, with_identity
from ztunnel.proxy.tunnel.pool_key import PoolKey
from ztunnel.telemetry.worker_counters import ConnectionPeers

MAX_PLANS = 1024  # plans of a pod


class ConnectionPlan:
    """For connections of `source` through a tunnel."""

    __slots__ = (
        *("authority", "decision", "destination", "head", "identity", "key", "peers", "proven"),
        "source",
    )

    def __init__(
        self,
        source: Workload,
        decision: Hbone,
        *,
        pod_uid: str,
        pod_identity: str,
        service: Service | None,
        baggage: bytes,
    ) -> None:
        """`service`: the one that was called, as the mesh knows it; `baggage` is the source's."""
        workload = decision.workload
        self.source = source
        self.decision = decision
        self.identity = source.identity
        # the peer either proves to be the workload or gets nothing
        self.peers = ConnectionPeers(source, workload, service, (self.identity, workload.identity))
        self.authority = str(decision.authority)
        self.destination = make_peer(decision.tunnel, workload)
        self.proven = with_identity(self.destination, workload.identity)
        self.key = PoolKey(
            pod_uid=pod_uid,
            source=pod_identity,
            expected=frozenset(decision.identities),
            address=decision.tunnel,
            workload=workload.uid,
            workload_pod=workload.pod_uid,
        )
        self.head = encode(
            (
                (b":method", b"CONNECT"),
                (b":authority", self.authority.encode()),
                (b"baggage", baggage),
            )
        )

    def proven_destination(self, peer: str) -> Peer:
        """The destination, now that the peer has proven who it is."""
        if peer == self.proven.identity:
            return self.proven
        return with_identity(self.destination, peer)


class PlanCache:
    """Those of one pod."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, ConnectionPlan] = {}

    def get(self, source: Workload, decision: Hbone) -> ConnectionPlan | None:
        """The plan for a decision about connections of `source`, if it is known."""
        known = self._known.get(id(decision))
        return known if known is not None and known.source is source else None

    def add(self, plan: ConnectionPlan) -> None:
        """Remember a plan."""
        if len(self._known) >= MAX_PLANS:
            self._known.clear()
        self._known[id(plan.decision)] = plan

    def clear(self) -> None:
        """The pod itself has changed."""
        self._known.clear()
