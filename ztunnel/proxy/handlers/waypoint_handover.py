# SPDX-License-Identifier: Apache-2.0
"""The waypoint's half of a connection whose client and waypoint are pods of this node.

Such a connection needs no tunnel: this proxy holds the keys of both pods, and would be both ends of
it. The waypoint's half authorizes the connection as it authorizes a CONNECT, and dials the pod's
Envoy; the client's half then relays between the two sockets.

    CHECKING ── authorized ──▶ DIALING ── Envoy accepts ──▶ RELAYING ──▶ CLOSED
        │ 400 not its destination  │ 503 Envoy does not accept
        │ 401 denied by policy     │ 401 denied by a policy change
        └──────────────────────────┴──▶ CLOSED

Both halves have their record, with its access-log line and its metrics. Whatever would end a tunnel
between the two pods ends the connection: a policy that denies it, a root that is removed, a removed
pod, and a drain. Where a condition is not met, the connection uses a tunnel.
"""

from __future__ import annotations

import socket
from typing import NamedTuple, Protocol

from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.engine import Decision
from ztunnel.mesh.routing.decisions import Accept, Reject
from ztunnel.mesh.routing.inbound import DENIED, UNAVAILABLE, check_handover
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.conntrack.record import Direction, Record
from ztunnel.proxy.conntrack.tracker import make_peer
from ztunnel.proxy.context import Context
from ztunnel.proxy.handlers.inbound_stream import CHECKING, CLOSED, DIALING, RELAYING
from ztunnel.proxy.handlers.waypoint_header import send_waypoint_header
from ztunnel.proxy.handlers.waypoint_probe import EnvoyProbe
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.io.socket_pool import SocketPool
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tls.credentials import Credentials
from ztunnel.proxy.tunnel.connection_plan import ConnectionPlan
from ztunnel.telemetry.response_flags import with_prefix
from ztunnel.telemetry.worker_counters import ConnectionPeers


class LocalWaypoint(NamedTuple):
    """A waypoint's pod of this node, which the client of a connection trusts, and the reverse."""

    pod: Pod
    client: Credentials
    server: Credentials


class ClientHalf(Protocol):
    """The client's half: `HboneOutbound`."""

    @property
    def has_data(self) -> bool: ...

    def handed_over(self, sock: socket.socket, record: Record, seen_events: int) -> None: ...

    def handover_refused(self, status: int) -> None: ...

    def abort(self, reason: str) -> None: ...


def find_local_waypoint(
    context: Context, plan: ConnectionPlan, client: SocketAddress, credentials: Credentials
) -> LocalWaypoint | None:
    """The pod that a connection can be handed over to; None: it needs a tunnel.

    `credentials`: of the client's pod, whose address `client` is.
    """
    mesh, decision = context.mesh, plan.decision
    if mesh is None or not mesh.same_node_direct or not client.ip:
        return None
    pod = context.pods.get(decision.workload.pod_uid)
    if (
        pod is None
        or pod.workload != decision.workload.uid
        or pod.identity not in decision.identities
        or decision.tunnel.ip not in pod.addresses
        or not (ListenerKind.HBONE4 in pod.listeners or ListenerKind.HBONE6 in pod.listeners)
    ):
        return None
    server = context.credentials.get(pod.identity)
    if server is None or not context.local_trust.is_mutual(credentials, server):
        return None
    return LocalWaypoint(pod, credentials, server)


class WaypointHandover:
    """One connection. Calls `handed_over` or `handover_refused` once, unless cancelled."""

    def __init__(
        self,
        context: Context,
        waypoint: LocalWaypoint,
        owner: ClientHalf,
        *,
        plan: ConnectionPlan,
        client: SocketAddress,
        trace: str,
    ) -> None:
        """`trace`: the `traceparent` that the CONNECT would have."""
        self._context = context
        self._waypoint = waypoint
        self._pod = waypoint.pod
        self._owner: ClientHalf | None = owner
        self._destination = plan.decision.authority
        self._local = plan.decision.tunnel
        self._client = client
        self._trace = trace
        self._state = CHECKING
        self._record: Record | None = None
        self._accepted: Accept | None = None
        self._sockets: SocketPool | None = None
        self._connector: Connector | None = None
        self._probe: EnvoyProbe | None = None

    @property
    def identities(self) -> tuple[str, str]:
        """The proven identities of the client and of the waypoint."""
        return self._waypoint.client.identity, self._waypoint.server.identity

    def start(self) -> None:
        """Check and authorize the connection, and dial Envoy."""
        self._pod.live.add(self)
        mesh = self._context.mesh
        if mesh is None:
            self._refuse(UNAVAILABLE, "no mesh state from the agent yet")
            return
        match check_handover(
            mesh,
            self._destination,
            local=self._local,
            client=self._client,
            identity=self._waypoint.client.identity,
        ):
            case Reject(status, reason):
                self._refuse(status, reason)
            case Accept() as accepted:
                self._authorize(mesh, accepted)

    def _authorize(self, mesh: MeshState, accepted: Accept) -> None:
        """Evaluate the policies of the waypoint's pod."""
        context, identity = self._context, self._waypoint.client.identity
        source = make_peer(accepted.client, accepted.source, identity)
        destination = make_peer(accepted.destination, accepted.workload, self._pod.identity)
        service = mesh.service_by_name(accepted.service) if accepted.service else None
        principals = (identity, self._pod.identity)
        peers = ConnectionPeers(accepted.source, accepted.workload, service, principals)
        decision = context.admissions.admit(mesh, self, accepted, identity)
        if not decision.allowed:
            context.tracker.connection_denied(
                Direction.INBOUND,
                source,
                destination,
                decision,
                hbone_addr=str(self._local),
                service=accepted.service,
                peers=peers,
            )
            owner = self._close()  # the access log has its line
            if owner is not None:
                owner.handover_refused(DENIED)
            return
        self._record = context.tracker.connection_opened(
            Direction.INBOUND,
            source,
            destination,
            hbone_addr=str(self._local),
            service=accepted.service,
            peers=peers,
        )
        self._record.dry_run = decision.dry_run
        if context.tracker.tracer is not None:
            self._record.trace = self._trace
        self._accepted = accepted
        self._dial()

    def _dial(self) -> None:
        context = self._context
        self._state = DIALING
        self._sockets = self._pod.socket_pool_for(context.envoy)
        self._connector = Connector(context.loop, self._sockets, context.envoy, self._dialled)
        self._connector.start()

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        self._connector = None
        accepted, owner = self._accepted, self._owner
        if sock is None or accepted is None or owner is None:
            self._refuse(UNAVAILABLE, reason)
            return
        context = self._context
        is_recent = context.recent_destinations.contains(accepted.destination.ip, context.loop.now)
        # with the application's bytes in one segment, unless they have to wait
        flags = socket.MSG_MORE if owner.has_data and not is_recent else 0
        reason = send_waypoint_header(
            sock, accepted, self._waypoint.client.identity, self._trace.encode(), flags
        )
        if reason:
            context.loop.close(sock)
            self._refuse(UNAVAILABLE, reason)
        elif is_recent:
            self._probe = EnvoyProbe(context.loop, sock, self._probed)
        else:
            self._serve(sock, 0)

    def _probed(self, sock: socket.socket, accepted: bool, seen_events: int) -> None:
        self._probe = None
        if accepted:
            self._serve(sock, seen_events)
            return
        self._context.loop.close(sock)
        self._refuse(UNAVAILABLE, "the waypoint's Envoy has no configuration for the destination")

    def _serve(self, sock: socket.socket, seen_events: int) -> None:
        owner, record = self._owner, self._record
        assert owner is not None
        assert record is not None
        self._state = RELAYING
        owner.handed_over(sock, record, seen_events)

    # Closing

    def deny(self, decision: Decision) -> None:
        """A policy change denies this connection: reset it."""
        if self._record is not None:
            self._context.tracker.mark_denied(self._record, decision)
        self._end(DENIED, decision.reason)

    def abort(self, reason: str) -> None:
        """Reset the connection: the waypoint's pod is gone."""
        self._end(UNAVAILABLE, reason)

    def drain(self) -> None:
        """As a stream of a tunnel: draining waits until the connection ends by itself."""

    def close_if_untrusted(self, own: Credentials) -> None:
        """Reset the connection if these credentials of one side do not trust the other side."""
        client, server = self._waypoint.client, self._waypoint.server
        is_trusted = (own.identity != server.identity or own.trusts(client)) and (
            own.identity != client.identity or own.trusts(server)
        )
        if not is_trusted:
            self._end(UNAVAILABLE, "the root of the peer's certificate has been removed")

    def recycle(self, sock: socket.socket) -> None:
        """Reuse the socket to Envoy after an orderly end."""
        self._context.loop.unregister(sock.fileno())
        if self._sockets is not None:
            self._sockets.recycle(sock)

    def cancel(self, reason: str) -> None:
        """The client's half ends before the connection was handed over."""
        self._release_setup()
        self.finish(reason)

    def finish(self, error: str) -> None:
        """The connection has ended; without `error`, in order."""
        if self._state is CLOSED:
            return
        self._close()
        if self._record is not None:
            self._context.tracker.connection_closed(self._record, error)
        else:
            self._context.tracker.connection_refused(
                Direction.INBOUND, str(self._client), str(self._destination), error
            )

    def _end(self, status: int, reason: str) -> None:
        if self._state is RELAYING and self._owner is not None:
            self._owner.abort(reason)  # calls `finish`
        else:
            self._refuse(status, reason)

    def _refuse(self, status: int, reason: str) -> None:
        owner = self._owner
        self._release_setup()
        self.finish(with_prefix(reason, f"{status}: "))
        if owner is not None:
            owner.handover_refused(status)

    def _release_setup(self) -> None:
        if self._connector is not None:
            self._connector.cancel()
            self._connector = None
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _close(self) -> ClientHalf | None:
        """Release everything; returns the client's half."""
        owner, self._owner = self._owner, None  # no cycles for the garbage collector
        self._state = CLOSED
        self._context.admissions.remove(self)
        self._pod.live.discard(self)
        return owner
