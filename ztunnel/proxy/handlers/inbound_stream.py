# SPDX-License-Identifier: Apache-2.0
"""One CONNECT request to an application of a pod.

    CHECKING ── authorized ──▶ DIALING ── connected: 200 ──▶ RELAYING ──▶ CLOSED
        │                         │
        │ 400 not for this pod    │ 503 the application does not accept
        │ 401 denied by policy    │ 401 denied by a policy change
        │ 503 not ready           ▼
        └──────────────────────▶ CLOSED

A connect-udp request needs no dialing: it goes from CHECKING to RELAYING. The application sees the
address of the original client: `set_client_address` sets it before the proxy dials. A connection to
a destination whose waypoint the pod is goes to the pod's Envoy: a PROXY header precedes its bytes.
"""

from __future__ import annotations

import socket
from enum import Enum, auto
from typing import Final

from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Header, RequestReceived
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.engine import Decision
from ztunnel.mesh.routing.decisions import Accept, Reject
from ztunnel.mesh.routing.inbound import DENIED, UNAVAILABLE, check_connect
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.conntrack.record import Direction, Record
from ztunnel.proxy.conntrack.tracker import make_peer
from ztunnel.proxy.context import Context
from ztunnel.proxy.handlers.waypoint_header import send_waypoint_header
from ztunnel.proxy.handlers.waypoint_probe import EnvoyProbe
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.io.socket_pool import SocketPool
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tunnel.datagram_relay import CAPSULE_PROTOCOL, UdpFlow
from ztunnel.proxy.tunnel.stream_relay import StreamRelay
from ztunnel.proxy.tunnel.tunnel import EARLY_DATA_BYTES, Tunnel
from ztunnel.telemetry.response_flags import with_prefix
from ztunnel.telemetry.worker_counters import ConnectionPeers


class InboundState(Enum):
    """See the diagram in the module's docstring."""

    CHECKING = auto()
    DIALING = auto()
    RELAYING = auto()
    CLOSED = auto()


CHECKING: Final[InboundState] = InboundState.CHECKING
DIALING: Final[InboundState] = InboundState.DIALING
RELAYING: Final[InboundState] = InboundState.RELAYING
CLOSED: Final[InboundState] = InboundState.CLOSED


class InboundStream:
    """Receives the events of the stream until a relay replaces it."""

    def __init__(
        self,
        context: Context,
        pod: Pod,
        tunnel: Tunnel,
        request: RequestReceived,
        *,
        local: SocketAddress,
        peer: SocketAddress,
    ) -> None:
        """`local` and `peer` are the addresses of the tunnel's connection."""
        self.stream_id = request.stream_id
        self._context = context
        self._pod = pod
        self._tunnel = tunnel
        self._request = request
        self._local = local
        self._peer = peer
        self._state = CHECKING
        self._record: Record | None = None
        self._accepted: Accept | None = None
        self._sockets: SocketPool | None = None
        self._connector: Connector | None = None
        self._probe: EnvoyProbe | None = None
        self._relay: StreamRelay | UdpFlow | None = None
        self._early_data: list[bytes] = []  # before the response; bounded by the stream's window
        self._early_end = False
        self._early_data_follows = tunnel.early_data_follows

    def start(self) -> None:
        """Check the request, authorize it and dial the application."""
        self._tunnel.attach(self.stream_id, self)
        mesh = self._context.mesh
        if mesh is None:  # impossible: the server requires a mesh, which is never unset
            self._refuse(UNAVAILABLE, "no mesh state from the agent yet")
            return
        match check_connect(
            mesh,
            self._request,
            local=self._local,
            peer=self._peer,
            identity=self._tunnel.peer,
        ):
            case Reject(status, reason):
                self._refuse(status, reason)
            case Accept() as accepted:
                self._authorize(mesh, accepted)

    def _authorize(self, mesh: MeshState, accepted: Accept) -> None:
        """Evaluate the authorization policies."""
        source = make_peer(accepted.client, accepted.source, self._tunnel.peer)
        destination = make_peer(accepted.destination, accepted.workload, self._pod.identity)
        tracker, protocol = self._context.tracker, "udp" if accepted.udp else "tcp"
        peers = self._connection_peers(mesh, accepted)
        decision = self._context.admissions.admit(mesh, self, accepted, self._tunnel.peer)
        if not decision.allowed:
            tracker.connection_denied(
                Direction.INBOUND,
                source,
                destination,
                decision,
                hbone_addr=str(self._local),
                service=accepted.service,
                peers=peers,
                protocol=protocol,
            )
            self._state = CLOSED  # the access log has its line
            self._release_setup()
            self._tunnel.refuse(self.stream_id, DENIED)
            return
        self._record = tracker.connection_opened(
            Direction.INBOUND,
            source,
            destination,
            hbone_addr=str(self._local),
            service=accepted.service,
            peers=peers,
            protocol=protocol,
        )
        self._record.dry_run = decision.dry_run
        if tracker.tracer is not None:
            self._record.trace = _traceparent(self._request).decode("latin-1")
        self._accepted = accepted
        if accepted.udp:
            self._serve_udp(accepted, self._record)
        else:
            self._dial(accepted)

    def _connection_peers(self, mesh: MeshState, accepted: Accept) -> ConnectionPeers:
        """Labels for metrics; a service that the peer names counts only if the mesh knows it."""
        service = mesh.service_by_name(accepted.service) if accepted.service else None
        principals = (self._tunnel.peer, self._pod.identity)
        return ConnectionPeers(accepted.source, accepted.workload, service, principals)

    # TCP

    def _dial(self, accepted: Accept) -> None:
        context = self._context
        self._state = DIALING
        target = context.envoy if accepted.to_waypoint else accepted.destination
        self._sockets = self._pod.socket_pool_for(target)
        self._connector = Connector(
            context.loop,
            self._sockets,
            target,
            self._dialled,
            None
            if accepted.to_waypoint
            else lambda sock: context.set_client_address(sock, accepted.client),
        )
        self._connector.start()

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        self._connector = None
        accepted = self._accepted
        if sock is not None and accepted is not None and accepted.to_waypoint:
            is_recent = self._is_recent(accepted)
            # with the early data in one segment, unless they have to wait
            flags = socket.MSG_MORE if self._early_data and not is_recent else 0
            reason = send_waypoint_header(
                sock, accepted, self._tunnel.peer, _traceparent(self._request), flags
            )
            if reason:
                self._context.loop.close(sock)
                sock = None
            elif is_recent:
                self._probe = EnvoyProbe(self._context.loop, sock, self._probed)
                return
        if sock is None:
            self._refuse(UNAVAILABLE, reason)
            return
        self._serve(sock, 0)

    def _is_recent(self, accepted: Accept) -> bool:
        context = self._context
        return context.recent_destinations.contains(accepted.destination.ip, context.loop.now)

    def _probed(self, sock: socket.socket, accepted: bool, seen_events: int) -> None:
        self._probe = None
        if accepted:
            self._serve(sock, seen_events)
            return
        self._context.loop.close(sock)
        self._refuse(UNAVAILABLE, "the waypoint's Envoy has no configuration for the destination")

    def _serve(self, sock: socket.socket, seen_events: int) -> None:
        """Respond, and relay between the stream and the application."""
        accepted, record = self._accepted, self._record
        assert record is not None
        self._tunnel.respond(
            self.stream_id, 200, self._response_headers(), may_wait=self._has_request()
        )
        reporter = self._context.same_node_reporter
        if reporter is not None and accepted is not None and not accepted.to_waypoint:
            reporter.report_allowed(accepted, self._pod.uid)
        self._state = RELAYING
        self._relay = relay = StreamRelay(
            self._context.loop,
            self._tunnel,
            self.stream_id,
            sock,
            record=record,
            ended=self._relay_ended,
        )
        relay.begin(seen_events)
        for payload in self._early_data:
            relay.on_data(memoryview(payload))
        self._early_data.clear()
        if self._early_end:
            relay.on_end()

    def _response_headers(self) -> list[Header]:
        mesh = self._context.mesh
        workload = mesh.workload(self._pod.workload) if mesh is not None else None
        return [(b"baggage", self._pod.baggage(workload))] if workload is not None else []

    def _has_request(self) -> bool:
        """Whether the application gets a complete request at once, so that it replies soon.

        A full buffer of early data suggests that the client waits for the response to send more.
        """
        size = sum(map(len, self._early_data))
        return self._early_data_follows or 0 < size < EARLY_DATA_BYTES

    # UDP

    def _serve_udp(self, accepted: Accept, record: Record) -> None:
        """Connect the stream with a UDP flow of the pod."""
        udp = self._pod.udp
        if udp is None:
            self._refuse(UNAVAILABLE, "no UDP sockets for this pod yet")
            return
        try:
            flow = udp.serve(self._tunnel, self.stream_id, accepted, record, self._udp_ended)
        except OSError as error:
            reason = f"no token for {accepted.client}: {error.strerror or error}"
            self._refuse(UNAVAILABLE, reason)
            return
        if flow is None:
            self._refuse(UNAVAILABLE, "UDP flow limit reached")
            return
        self._state = RELAYING
        self._relay, record.established = flow, True
        self._tunnel.respond(self.stream_id, 200, [CAPSULE_PROTOCOL])

    def _udp_ended(self, error: str) -> None:
        self._relay_ended(None, error)

    # Events of the stream before the relay

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None:
        """A server receives no responses."""

    def on_data(self, payload: memoryview) -> None:
        self._early_data.append(bytes(payload))

    def on_end(self) -> None:
        self._early_end = True

    def on_reset(self, reason: str) -> None:
        self._release_setup()
        self._finish(reason)

    def pump(self) -> None:
        """Nothing is sent before the response."""

    def on_failure(self, error: Exception) -> None:
        self._tunnel.reset(self.stream_id, ErrorCode.INTERNAL_ERROR)
        self._release_setup()
        self._finish(f"internal error: {error}")

    # Closing

    def deny(self, decision: Decision) -> None:
        """A policy change denies this connection: end it."""
        if self._record is not None:
            self._context.tracker.mark_denied(self._record, decision)
        if self._relay is not None:
            self._relay.abort(decision.reason)
        else:
            self._refuse(DENIED, decision.reason)

    def _refuse(self, status: int, reason: str) -> None:
        self._release_setup()
        self._tunnel.refuse(self.stream_id, status)
        self._finish(with_prefix(reason, f"{status}: "))

    def _release_setup(self) -> None:
        """Stop dialing and return the credit of early data."""
        if self._connector is not None:
            self._connector.cancel()
            self._connector = None
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        if self._early_data:
            self._tunnel.consumed(self.stream_id, sum(map(len, self._early_data)))
            self._early_data.clear()

    def _relay_ended(self, sock: socket.socket | None, error: str) -> None:
        """The relay has released everything except `sock`."""
        self._relay = None
        if sock is not None and self._sockets is not None:
            self._context.loop.unregister(sock.fileno())
            self._sockets.recycle(sock, inbound=not self._is_to_waypoint())
        self._finish(error)

    def _is_to_waypoint(self) -> bool:
        return self._accepted is not None and self._accepted.to_waypoint

    def _finish(self, error: str) -> None:
        if self._state is CLOSED:
            return
        self._state = CLOSED
        self._context.admissions.remove(self)
        if self._record is not None:
            self._context.tracker.connection_closed(self._record, error)
        else:
            self._context.tracker.connection_refused(
                Direction.INBOUND,
                str(self._peer),
                self._request.authority.decode("latin-1"),
                error,
            )


def _traceparent(request: RequestReceived) -> bytes:
    return next((value for name, value in request.headers if name == b"traceparent"), b"")
