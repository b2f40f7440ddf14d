# SPDX-License-Identifier: Apache-2.0
"""Connections that applications of a pod open: accepted on port 15001, routed and forwarded.

accepted → routed ┬→ refused: RST
                  ├→ `HboneOutbound`        through a tunnel to the destination or a waypoint
                  └→ `PassthroughOutbound`  to a destination that does not accept HBONE
"""

from __future__ import annotations

import socket

from ztunnel.mesh.model import Service, SocketAddress, Workload
from ztunnel.mesh.routing.decisions import Hbone, Passthrough, Refuse
from ztunnel.mesh.routing.outbound import route
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.conntrack.record import Direction
from ztunnel.proxy.context import Context
from ztunnel.proxy.handlers.outbound_hbone import HboneOutbound
from ztunnel.proxy.handlers.outbound_passthrough import PassthroughOutbound
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tunnel.connection_plan import ConnectionPlan
from ztunnel.telemetry.response_flags import Flag, Reason
from ztunnel.telemetry.worker_counters import UNKNOWN_PEERS, ConnectionPeers

_UNKNOWN = SocketAddress("", 0)


class OutboundServer:
    """A pod's listeners on port 15001."""

    def __init__(self, context: Context, pod: Pod) -> None:
        self._context = context
        self._pod = pod

    def accepted(self, sock: socket.socket) -> None:
        """Route and start one connection of an application."""
        client = _UNKNOWN
        try:
            peer = sock.getpeername()
            family = 4 if len(peer) == 2 else 6  # as Python writes addresses
            client = SocketAddress(self._pod.address(family), peer[1])
            destination = self._context.original_destination(sock)
        except OSError as error:
            reason = f"no original destination: {error.strerror or error}"
            self._refuse(sock, client, "unknown", reason)
            return
        mesh = self._context.mesh
        if mesh is None:
            self._refuse(sock, client, str(destination), "no mesh state from the agent yet")
            return
        source = mesh.workload(self._pod.workload)
        if source is None:
            reason = f"workload {self._pod.workload} is not in the mesh state"
            self._refuse(sock, client, str(destination), reason)
            return
        match route(mesh, source, destination, self._context.choose()):
            case Refuse(reason):
                peers = ConnectionPeers(source)
                name = self._context.recent_answers.name(self._pod.netns_cookie, destination.ip)
                self._refuse(sock, client, str(destination), reason, peers, dns_name=name)
            case Passthrough() as decision:
                PassthroughOutbound(
                    self._context,
                    self._pod,
                    sock,
                    client,
                    source=source,
                    decision=decision,
                    service=_service(mesh, decision.service),
                ).start()
            case Hbone() as decision:
                plan = self._plan(mesh, source, decision)
                credentials = self._context.credentials.get(self._pod.identity)
                if credentials is None:
                    reason = f"no certificate for {self._pod.identity} yet"
                    refusal = Reason(reason, Flag.IDENTITY_ERROR)
                    self._refuse(sock, client, str(destination), refusal, plan.peers)
                    return
                HboneOutbound(self._context, self._pod, sock, client, plan, planner=self).start(
                    credentials
                )

    def plan_again(self, destination: SocketAddress) -> ConnectionPlan | str:
        """Decide again on a connection through a waypoint; see `waypoint_retry`."""
        mesh = self._context.mesh
        source = mesh.workload(self._pod.workload) if mesh is not None else None
        if mesh is None or source is None:
            return f"workload {self._pod.workload} is not in the mesh state"
        match route(mesh, source, destination, self._context.choose()):
            case Refuse(reason):
                return reason
            case Hbone() as decision:
                return self._plan(mesh, source, decision)
        return f"{destination} has no waypoint any more, and is not in the mesh"

    def _plan(self, mesh: MeshState, source: Workload, decision: Hbone) -> ConnectionPlan:
        pod = self._pod
        plan = pod.plans.get(source, decision)
        if plan is None:
            plan = ConnectionPlan(
                source,
                decision,
                pod_uid=pod.uid,
                pod_identity=pod.identity,
                service=_service(mesh, decision.service),
                baggage=pod.baggage(source),
            )
            pod.plans.add(plan)
        return plan

    def _refuse(
        self,
        sock: socket.socket,
        client: SocketAddress,
        target: str,
        reason: str,
        peers: ConnectionPeers = UNKNOWN_PEERS,
        *,
        dns_name: str = "",
    ) -> None:
        self._context.loop.close(sock)  # a reset, see `sockets.reset_on_close`
        self._context.tracker.connection_refused(
            Direction.OUTBOUND, str(client), target, reason, peers=peers, dns_name=dns_name
        )


def _service(mesh: MeshState, name: str) -> Service | None:
    return mesh.service_by_name(name) if name else None
