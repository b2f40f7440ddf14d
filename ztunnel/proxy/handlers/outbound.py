# SPDX-License-Identifier: Apache-2.0
"""Connections that apps of a pod open: accepted on 15001, decided, carried.

    accepted → decided → refused (RST)
                       → tunnel asked for → CONNECT and first words sent → 200 → relay → ended
                       → dialled in the clear → relay → ended

Whatever fails before the relay is a reset, never a clean end that looks like success.
"""

from __future__ import annotations

import random
import socket

from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Header
from ztunnel.mesh.headers.forwarded import format_forwarded
from ztunnel.mesh.model import Service, SocketAddress, Workload
from ztunnel.mesh.routing.decisions import Hbone, Passthrough, Refuse
from ztunnel.mesh.routing.outbound import route
from ztunnel.proxy.conntrack.record import Direction, Record
from ztunnel.proxy.conntrack.tracker import make_peer
from ztunnel.proxy.context import Context
from ztunnel.proxy.io.connector import Dial
from ztunnel.proxy.io.event_loop import HANGUP, INPUT, Timer
from ztunnel.proxy.io.socket_pool import SocketPool
from ztunnel.proxy.io.sockets import end_on_close
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tunnel.connection_plan import Plan
from ztunnel.proxy.tunnel.pool import Source
from ztunnel.proxy.tunnel.relay import WATCH, PlainRelay, StreamRelay
from ztunnel.proxy.tunnel.tunnel import EARLY_DATA_BYTES, Tunnel
from ztunnel.telemetry.response_flags import Flag, Reason
from ztunnel.telemetry.worker_counters import UNKNOWN_PEERS, ConnectionPeers

DENIED = 401  # istio/ztunnel, proxy/inbound.rs: by policy
_NOT_ZERO = 1 << 64 | 1  # W3C trace context: neither the trace's id nor the span's is 0
RESPONSE_TIMEOUT = 20.0  # seconds for the far proxy's answer: its own connect may take 10


class OutboundServer:
    """A pod's listeners on 15001."""

    def __init__(self, context: Context, pod: Pod) -> None:
        self._context = context
        self._pod = pod

    def accepted(self, sock: socket.socket) -> None:
        """Serve one connection of the app."""
        Outbound(self._context, self._pod, sock).start()


class Outbound:
    """One connection of an app, until it ends. Also its stream, before the relay takes over."""

    def __init__(self, context: Context, pod: Pod, sock: socket.socket) -> None:
        self.stream_id = 0
        self._context = context
        self._pod = pod
        self._sock = sock
        self._client = SocketAddress("", 0)
        self._target = "unknown"
        self._record: Record | None = None
        self._plan: Plan | None = None
        self._tunnel: Tunnel | None = None
        self._stock: SocketPool | None = None
        self._dial: Dial | None = None
        self._relay: StreamRelay | PlainRelay | None = None
        self._timer: Timer | None = None
        self._has_spoken = False  # the app's first words went with the request
        self._seen = 0  # events of the app's socket before the relay
        self._ends = UNKNOWN_PEERS
        self._over = False

    def start(self) -> None:
        """Find out where it wants to go, decide, and set out."""
        context, sock = self._context, self._sock
        context.loop.register(sock.fileno(), WATCH, self)
        self._pod.live.add(self)
        try:
            peer = sock.getpeername()
            family = 4 if len(peer) == 2 else 6  # as Python writes them
            self._client = SocketAddress(self._pod.address(family), peer[1])
            destination = context.original_destination(sock)
        except OSError as error:
            self._fail(f"no original destination: {error.strerror or error}")
            return
        self._target = str(destination)
        mesh = context.mesh
        if mesh is None:
            self._fail("no mesh state from the agent yet")
            return
        source = mesh.workload(self._pod.workload)
        if source is None:
            self._fail(f"workload {self._pod.workload} is not in the mesh state")
            return
        self._ends = ConnectionPeers(source)
        match route(mesh, source, destination, context.choose()):
            case Refuse(reason):
                self._fail(reason)
            case Passthrough() as decision:
                self._pass_through(source, decision)
            case Hbone() as decision:
                self._tunnel_to(source, decision)

    # Through a tunnel

    def _tunnel_to(self, source: Workload, decision: Hbone) -> None:
        context = self._context
        credentials = context.credentials.get(self._pod.identity)
        self._plan = plan = self._plan_for(source, decision)
        self._ends = plan.ends
        if credentials is None:
            reason = f"no certificate for {self._pod.identity} yet"
            self._fail(Reason(reason, Flag.IDENTITY_ERROR))
            return
        self._record = context.report.begin(
            Direction.OUTBOUND,
            make_peer(self._client, source, plan.identity),
            plan.destination,
            hbone_addr=plan.authority,
            service=decision.service,
            ends=plan.ends,
        )
        lent = Source(self._pod.stock_for(decision.tunnel), credentials)
        context.pool.acquire(plan.key, lent, self._tunnel_ready)

    def _plan_for(self, source: Workload, decision: Hbone) -> Plan:
        pod = self._pod
        plan = pod.plans.get(source, decision)
        if plan is None:
            plan = Plan(
                source,
                decision,
                pod_uid=pod.uid,
                pod_identity=pod.identity,
                service=self._called(decision.service),
                baggage=pod.baggage(source),
            )
            pod.plans.add(plan)
        return plan

    def _called(self, service: str) -> Service | None:
        mesh = self._context.mesh
        return mesh.service_by_name(service) if service and mesh is not None else None

    def _request(self, plan: Plan, record: Record) -> tuple[Header, ...]:
        """What is of this connection only."""
        ids = (random.getrandbits(192) | _NOT_ZERO).to_bytes(24, "big").hex()
        sampled = "00" if self._context.report.tracer is None else "01"
        record.trace = f"00-{ids[:32]}-{ids[32:]}-{sampled}"
        forwarded = format_forwarded(self._client, plan.decision.service)
        return (
            (b"forwarded", forwarded.encode()),
            (b"traceparent", record.trace.encode()),
        )

    def _tunnel_ready(self, tunnel: Tunnel | None, reason: str) -> None:
        if self._over:
            return
        if tunnel is None:
            self._fail(reason)
            return
        self._tunnel = tunnel
        plan, record = self._plan, self._record
        assert plan is not None
        assert record is not None
        record.destination = plan.told_by(tunnel.peer)
        self.stream_id = tunnel.open(self._request(plan, record), self, plan.head)
        self._timer = self._context.loop.limit(RESPONSE_TIMEOUT, self._no_response)
        self._send_first_words(tunnel, record)

    def _send_first_words(self, tunnel: Tunnel, record: Record) -> None:
        """What the app has said goes with the request: it need not wait for the answer's trip.

        The peer has proven to be the destination, and gives it to nobody unless it lets us in.
        An end is left for the relay, which meets it again.
        """
        room = tunnel.claim(self)
        if room is None:
            return
        try:
            count = self._sock.recv_into(room[:EARLY_DATA_BYTES])
        except BlockingIOError:
            count = 0
        except OSError as error:
            tunnel.abandon()
            self._fail(f"application: {error.strerror}")
            return
        if not count:
            tunnel.abandon()
            return
        self._has_spoken = True
        record.sent += count
        tunnel.commit(self.stream_id, count)

    def _no_response(self) -> None:
        self._fail(f"no answer to CONNECT within {RESPONSE_TIMEOUT:.0f} s")

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None:
        if status != 200:
            flag = Flag.DENY if status == DENIED else Flag.CONNECT
            self._fail(Reason(f"the destination's proxy answered {status}", flag))
            return
        assert self._tunnel is not None
        assert self._record is not None
        self._stop_waiting()
        self._relay = StreamRelay(
            self._context.loop,
            self._tunnel,
            self.stream_id,
            self._sock,
            record=self._record,
            ended=self._ended,
        )
        self._relay.begin(self._seen)

    def on_data(self, payload: memoryview) -> None:
        """Data before a response: the codec lets none through; credit is owed all the same."""
        if self._tunnel is not None:
            self._tunnel.consumed(self.stream_id, len(payload))

    def on_end(self) -> None:
        self._fail("the destination's proxy ended the stream without an answer")

    def on_reset(self, reason: str) -> None:
        tunnel, self._tunnel = self._tunnel, None  # the stream is gone already
        if tunnel is not None and not tunnel.connection.is_greeted:
            reason = Reason(reason, Flag.H2_HANDSHAKE_FAILURE)
        self._fail(reason)

    def pump(self) -> None:
        """Nothing is sent before the answer."""

    # In the clear

    def _pass_through(self, source: Workload, decision: Passthrough) -> None:
        context = self._context
        self._record = context.report.begin(
            Direction.OUTBOUND,
            make_peer(self._client, source),
            make_peer(decision.address, decision.workload),
            service=decision.service,
            ends=ConnectionPeers(source, decision.workload, self._called(decision.service)),
        )
        self._stock = self._pod.stock_for(decision.address)
        self._dial = Dial(context.loop, self._stock, decision.address, self._dialled)
        self._dial.start()

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        if sock is None:
            self._fail(reason)
            return
        assert self._record is not None
        self._dial = None
        self._relay = PlainRelay(
            self._context.loop,
            self._context.buffers,
            self._sock,
            sock,
            record=self._record,
            ended=self._ended,
        )
        self._relay.begin(self._seen)

    # Ends

    def on_ready(self, mask: int) -> None:
        """Before the relay: whether the app gave up, or says its first words. All else waits."""
        self._seen |= mask
        if mask & HANGUP:
            self._fail("the app gave up")
        elif mask & INPUT and not self._has_spoken and self._tunnel and self._record:
            self._send_first_words(self._tunnel, self._record)

    def on_failure(self, error: Exception) -> None:
        self._fail(f"internal error: {error}")

    def abort(self, reason: str) -> None:
        """Reset it now."""
        if self._relay is not None:
            self._relay.abort(reason)
        else:
            self._fail(reason)

    def retire(self) -> None:
        """A connection goes on until it ends by itself."""

    def _ended(self, sock: socket.socket | None, error: str) -> None:
        """The relay is over and has released what it used, but for `sock`."""
        if sock is not None:
            self._leave_socket(sock)
        self._finish(error)

    def _leave_socket(self, sock: socket.socket) -> None:
        loop = self._context.loop
        if sock is self._sock:
            end_on_close(sock)
            loop.close(sock, sole=True)
        elif self._stock is not None:
            loop.unregister(sock.fileno())
            self._stock.give_back(sock)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fail(self, reason: str) -> None:
        """Refuse: reset the app's connection and let go of what was begun for it."""
        if self._over:
            return
        self._stop_waiting()
        if self._tunnel is not None:
            self._tunnel.reset(self.stream_id, ErrorCode.CANCEL)
        if self._dial is not None:
            self._dial.cancel()
        self._context.loop.close(self._sock)  # a reset, see `sockets.reset_on_close`
        self._finish(reason)

    def _finish(self, error: str) -> None:
        self._over = True
        self._pod.live.discard(self)
        self._relay = self._tunnel = self._dial = None  # no cycles for the collector
        if self._record is not None:
            self._context.report.end(self._record, error)
        else:
            self._context.report.refused(
                Direction.OUTBOUND, str(self._client), self._target, error, ends=self._ends
            )
