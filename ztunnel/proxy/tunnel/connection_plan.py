# SPDX-License-Identifier: Apache-2.0
"""What all connections of a pod to one destination have in common, computed once.

A plan belongs to one decision object: `route` returns the same object until the mesh changes. A
plan references its decision, so the decision's id() is not reused while the plan is cached.
"""

from __future__ import annotations

from ztunnel.hbone.headers import encode
from ztunnel.mesh.model import Service, Workload
from ztunnel.mesh.routing.decisions import Hbone
from ztunnel.proxy.conntrack.record import Peer
from ztunnel.proxy.conntrack.tracker import make_peer, with_identity
from ztunnel.proxy.tunnel.pool_key import PoolKey
from ztunnel.telemetry.worker_counters import ConnectionPeers

MAX_PLANS = 1024  # per pod


class ConnectionPlan:
    """For connections from `source` through a tunnel."""

    __slots__ = (
        *("authority", "decision", "destination", "head", "identity", "key", "peers", "proven"),
        *("source", "to_waypoint"),
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
        """`service`: what the application addressed; `baggage`: header of the source."""
        workload = decision.workload
        self.source = source
        self.decision = decision
        self.identity = source.identity
        # the peer must prove this identity before it receives any data
        self.peers = ConnectionPeers(source, workload, service, (self.identity, workload.identity))
        self.authority = str(decision.authority)
        self.to_waypoint = decision.authority.ip != decision.tunnel.ip
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
        """The destination with the identity that the peer has proven."""
        if peer == self.proven.identity:
            return self.proven
        return with_identity(self.destination, peer)


class PlanCache:
    """The plans of one pod."""

    __slots__ = ("_plans",)

    def __init__(self) -> None:
        self._plans: dict[int, ConnectionPlan] = {}

    def get(self, source: Workload, decision: Hbone) -> ConnectionPlan | None:
        """The cached plan for a decision about connections from `source`."""
        known = self._plans.get(id(decision))
        return known if known is not None and known.source is source else None

    def add(self, plan: ConnectionPlan) -> None:
        """Cache a plan."""
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        self._plans[id(plan.decision)] = plan

    def clear(self) -> None:
        """Invalidate all plans: the pod itself has changed."""
        self._plans.clear()
