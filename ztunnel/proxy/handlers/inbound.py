# SPDX-License-Identifier: Apache-2.0
"""Connections to apps of a pod that come by HBONE, on 15008.

    accepted → TLS → tunnel → CONNECT → checked → let in → dialled → 200 → relay → ended
                                      → 400, 503 → 401             → 503

The app is told the true client's address before it accepts.
"""

from __future__ import annotations

import socket

from ztunnel.hbone.connection import Role
from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Header, RequestReceived
from ztunnel.mesh.policy.engine import Decision
from ztunnel.mesh.routing.decisions import Accept, Reject
from ztunnel.mesh.routing.inbound import DENIED, check_connect
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.conntrack.record import Direction, Record
from ztunnel.proxy.conntrack.tracker import make_peer
from ztunnel.proxy.context import Context
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.io.socket_pool import SocketPool
from ztunnel.proxy.io.sockets import local_address, peer_address, reset_on_close
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tls import credentials as tls_credentials
from ztunnel.proxy.tls.handshake import Handshake
from ztunnel.proxy.tls.session import TlsSession
from ztunnel.proxy.tunnel.datagram_relay import CAPSULE_PROTOCOL, UdpFlow
from ztunnel.proxy.tunnel.relay import StreamRelay
from ztunnel.proxy.tunnel.tunnel import EARLY_DATA_BYTES, Tunnel
from ztunnel.telemetry.response_flags import with_prefix
from ztunnel.telemetry.worker_counters import ConnectionPeers

MAX_HANDSHAKES = 256  # unfinished ones of a pod; the oldest gives way to a newcomer


class HboneServer:
    """A pod's listeners on 15008."""

    def __init__(self, context: Context, pod: Pod) -> None:
        self._context = context
        self._pod = pod
        self._handshakes: dict[Handshake, HboneConnection] = {}  # oldest first

    def accepted(self, sock: socket.socket) -> None:
        """Begin TLS, if we have anything to show."""
        credentials = self._context.credentials.get(self._pod.identity)
        if credentials is None or self._context.mesh is None:
            reset_on_close(sock)
            self._context.loop.close(sock)
            return
        if len(self._handshakes) >= MAX_HANDSHAKES:
            next(iter(self._handshakes)).abort("too many unfinished handshakes")
        connection = HboneConnection(self._context, self._pod, self, sock)
        handshake = Handshake(
            self._context.loop,
            sock,
            credentials.server,
            self._context.buffers,
            connection,
            peer_ok=self._peer_ok,
        )
        self._handshakes[handshake] = connection
        handshake.accept()

    def handshake_over(self, handshake: Handshake) -> None:
        """It succeeded or failed: it counts no more."""
        self._handshakes.pop(handshake, None)

    def _peer_ok(self, peer: str) -> str:
        ours, theirs = (
            tls_credentials.trust_domain(self._pod.identity),
            tls_credentials.trust_domain(peer),
        )
        return "" if ours == theirs else f"trust domain {theirs} is not {ours}"


class HboneConnection:
    """One peer's TLS connection to the pod, and the owner of its tunnel."""

    def __init__(
        self, context: Context, pod: Pod, server: HboneServer, sock: socket.socket
    ) -> None:
        self.context = context
        self.pod = pod
        self.peer_address = peer_address(sock)
        self.local_address = local_address(sock)
        self.hbone_addr = str(self.local_address)
        self._server = server
        self._tunnel: Tunnel | None = None

    def handshake_done(self, handshake: Handshake, session: TlsSession, peer: str) -> None:
        self._server.handshake_over(handshake)
        self._tunnel = Tunnel(
            self.context.loop,
            self.context.buffers,
            session,
            Role.SERVER,
            peer=peer,
            owner=self,
        )
        self.pod.live.add(self)

    def handshake_failed(self, handshake: Handshake, reason: str) -> None:
        self._server.handshake_over(handshake)
        mesh = self.context.mesh
        self.context.tracker.handshake_failed(
            Direction.INBOUND,
            str(self.peer_address),
            str(self.local_address),
            reason,
            ConnectionPeers(None, mesh.workload(self.pod.workload) if mesh is not None else None),
        )

    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None:
        InboundStream(self, tunnel, request).start()

    def on_capacity(self, tunnel: Tunnel) -> None:
        """The peer opens streams, not we."""

    def on_closed(self, tunnel: Tunnel, reason: str) -> None:
        self._tunnel = None
        self.pod.live.discard(self)

    def abort(self, reason: str) -> None:
        if self._tunnel is not None:
            self._tunnel.close(reason)

    def drain(self) -> None:
        if self._tunnel is not None:
            self._tunnel.drain()


class InboundStream:
    """One CONNECT, until the relay takes over, and its end."""

    def __init__(
        self, connection: HboneConnection, tunnel: Tunnel, request: RequestReceived
    ) -> None:
        self.stream_id = request.stream_id
        self._connection = connection
        self._context = connection.context
        self._pod = connection.pod
        self._tunnel = tunnel
        self._request = request
        self._record: Record | None = None
        self._accepted: Accept | None = None
        self._sockets: SocketPool | None = None
        self._dial: Connector | None = None
        self._relay: StreamRelay | UdpFlow | None = None
        self._early: list[bytes] = []  # data before our answer; the stream's window bounds it
        self._early_end = False
        self._has_words = tunnel.early_data_follows  # they come right after this event
        self._over = False

    def start(self) -> None:
        """Check what is asked, and dial the app."""
        self._tunnel.attach(self.stream_id, self)
        mesh = self._context.mesh
        if mesh is None:  # the listener is served only with one; it is never taken back
            self._refuse(503, "no mesh state from the agent yet")
            return
        connection = self._connection
        match check_connect(
            mesh,
            self._request,
            local=connection.local_address,
            peer=connection.peer_address,
            identity=self._tunnel.peer,
        ):
            case Reject(status, reason):
                self._refuse(status, reason)
            case Accept() as accepted:
                self._judge(mesh, accepted)

    def _judge(self, mesh: MeshState, accepted: Accept) -> None:
        """Let in only whom policy allows."""
        source = make_peer(accepted.client, accepted.source, self._tunnel.peer)
        destination = make_peer(accepted.destination, accepted.workload, self._pod.identity)
        hbone_addr, service = self._connection.hbone_addr, accepted.service
        tracker, peers = self._context.tracker, self._peers(mesh, accepted)
        decision = self._context.admissions.admit(mesh, self, accepted, self._tunnel.peer)
        if decision.allowed:
            self._record = tracker.connection_opened(
                Direction.INBOUND,
                source,
                destination,
                hbone_addr=hbone_addr,
                service=service,
                peers=peers,
                protocol="udp" if accepted.udp else "tcp",
            )
            self._record.dry_run = decision.dry_run
            if tracker.tracer is not None:
                self._record.trace = _traceparent(self._request)
            self._begin(accepted)
            return
        tracker.connection_denied(
            Direction.INBOUND,
            source,
            destination,
            decision,
            hbone_addr=hbone_addr,
            service=service,
            peers=peers,
            protocol="udp" if accepted.udp else "tcp",
        )
        self._over = True  # its line is written
        self._let_go()
        self._tunnel.refuse(self.stream_id, DENIED)

    def _begin(self, accepted: Accept) -> None:
        context = self._context
        self._accepted = accepted
        if accepted.udp:
            self._serve_udp(accepted)
            return
        self._sockets = self._pod.socket_pool_for(accepted.destination)
        self._dial = Connector(
            context.loop,
            self._sockets,
            accepted.destination,
            self._dialled,
            lambda sock: context.set_client_address(sock, accepted.client),
        )
        self._dial.start()

    def _serve_udp(self, accepted: Accept) -> None:
        """Datagrams need no dialling: the flow takes the stream over."""
        udp, record = self._pod.udp, self._record
        assert record is not None
        if udp is None:
            self._refuse(503, "no UDP for this pod yet")
            return
        try:
            flow = udp.serve(self._tunnel, self.stream_id, accepted, record, self._udp_ended)
        except OSError as error:
            self._refuse(503, f"no token for {accepted.client}: {error.strerror or error}")
            return
        if flow is None:
            self._refuse(503, "no room for a further flow")
            return
        self._relay, record.established = flow, True
        self._tunnel.respond(self.stream_id, 200, [CAPSULE_PROTOCOL])

    def _udp_ended(self, error: str) -> None:
        self._ended(None, error)

    def _peers(self, mesh: MeshState, accepted: Accept) -> ConnectionPeers:
        """Between whom it counts; a service the peer names counts only if the mesh has it."""
        called = mesh.service_by_name(accepted.service) if accepted.service else None
        principals = (self._tunnel.peer, self._pod.identity)
        return ConnectionPeers(accepted.source, accepted.workload, called, principals)

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        self._dial = None
        if sock is None:
            self._refuse(503, reason)
            return
        assert self._record is not None
        mesh = self._context.mesh
        workload = mesh.workload(self._pod.workload) if mesh is not None else None
        headers = [(b"baggage", self._pod.baggage(workload))] if workload is not None else []
        # a full measure of first words is one of many: who has more to say waits for our answer
        is_asked = self._has_words or 0 < sum(map(len, self._early)) < EARLY_DATA_BYTES
        self._tunnel.respond(self.stream_id, 200, headers, may_wait=is_asked)
        if self._context.same_node_reporter is not None and self._accepted is not None:
            self._context.same_node_reporter.report_allowed(self._accepted, self._pod.uid)
        self._relay = relay = StreamRelay(
            self._context.loop,
            self._tunnel,
            self.stream_id,
            sock,
            record=self._record,
            ended=self._ended,
        )
        relay.begin()
        self._replay(relay)

    def _replay(self, relay: StreamRelay) -> None:
        """Give the relay what came before our answer."""
        for payload in self._early:
            relay.on_data(memoryview(payload))
        self._early.clear()
        if self._early_end:
            relay.on_end()

    # Events before the relay

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None:
        """We are the ones who answer."""

    def on_data(self, payload: memoryview) -> None:
        self._early.append(bytes(payload))

    def on_end(self) -> None:
        self._early_end = True

    def on_reset(self, reason: str) -> None:
        self._let_go()
        self._finish(reason)

    def pump(self) -> None:
        """Nothing is sent before our answer."""

    def on_failure(self, error: Exception) -> None:
        self._tunnel.reset(self.stream_id, ErrorCode.INTERNAL_ERROR)
        self._let_go()
        self._finish(f"internal error: {error}")

    # Ends

    def deny(self, decision: Decision) -> None:
        """Policy has changed against it."""
        if self._record is not None:
            self._context.tracker.mark_denied(self._record, decision)
        if self._relay is not None:
            self._relay.abort(decision.reason)
        else:
            self._refuse(DENIED, decision.reason)

    def _refuse(self, status: int, reason: str) -> None:
        self._let_go()
        self._tunnel.refuse(self.stream_id, status)
        self._finish(with_prefix(reason, f"{status}: "))

    def _let_go(self) -> None:
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._early:
            self._tunnel.consumed(self.stream_id, sum(map(len, self._early)))
            self._early.clear()

    def _ended(self, sock: socket.socket | None, error: str) -> None:
        self._relay = None
        if sock is not None and self._sockets is not None:
            self._context.loop.unregister(sock.fileno())
            self._sockets.recycle(sock, inbound=True)
        self._finish(error)

    def _finish(self, error: str) -> None:
        if self._over:
            return
        self._over = True
        self._context.admissions.remove(self)
        if self._record is not None:
            self._context.tracker.connection_closed(self._record, error)
        else:
            self._context.tracker.connection_refused(
                Direction.INBOUND,
                str(self._connection.peer_address),
                self._request.authority.decode("latin-1"),
                error,
            )


def _traceparent(request: RequestReceived) -> str:
    found = next((value for name, value in request.headers if name == b"traceparent"), b"")
    return found.decode("latin-1")
