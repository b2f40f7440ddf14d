# SPDX-License-Identifier: Apache-2.0
"""The UDP of a pod, as far as one worker carries it: a socket a family in the pod, many flows.

To the sockets in the pod a token stands for each remote address (bpf/zt_udp.h): what an app sends
to a remote comes to us with its token, and what we send from the token the app reads as from the
remote.

    app ── datagram ──▶ token? port? ─ known ──▶ flow ──▶ stream
                                     └ new ────▶ remote? ─▶ decided ─▶ tunnel asked for ─▶ CONNECT
    app ◀── datagram ── token ◀── flow ◀── stream (of ours, or one that a peer opened)
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Callable

import structlog

from ztunnel.hbone.events import Header
from ztunnel.ipc.messages import ConnectUdpUnsupported
from ztunnel.mesh.address import family as family_of
from ztunnel.mesh.headers.connect_udp import PROTOCOL, format_target
from ztunnel.mesh.headers.forwarded import format_forwarded
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.routing.decisions import Accept, Hbone, Refuse
from ztunnel.mesh.routing.outbound import route_udp
from ztunnel.proxy.conntrack.record import Direction, Record
from ztunnel.proxy.conntrack.tracker import make_peer, with_identity
from ztunnel.proxy.conntrack.udp_flow_table import UdpFlowTable
from ztunnel.proxy.context import Context
from ztunnel.proxy.io.event_loop import READ, Timer
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tunnel.datagram_relay import CAPSULE_PROTOCOL, FlowKey, UdpFlow
from ztunnel.proxy.tunnel.pool import DialContext
from ztunnel.proxy.tunnel.pool_key import PoolKey
from ztunnel.proxy.tunnel.tunnel import Tunnel
from ztunnel.proxy.tunnel.udp_token_address import (
    CONTROL_SPACE,
    Address,
    TokenCodec,
    TokenCodec4,
    TokenCodec6,
)
from ztunnel.telemetry.udp_drop_counters import UdpDropReason
from ztunnel.telemetry.worker_counters import ConnectionPeers

SWEEP_INTERVAL_S = 1.0  # seconds between looks for idle flows
REFUSED_TTL_S = 1.0  # seconds in which datagrams to whom we just failed to reach are dropped
READ_BATCH = 128  # read in one turn, so that others keep their share
MAX_REFUSED_FLOWS = 4096  # pairs remembered for PATIENCE

log = structlog.get_logger()


class PodUdp:
    """One pod's UDP in this worker; the sockets are the agent's (`datapath.udp.udp_sockets`)."""

    def __init__(
        self,
        context: Context,
        pod: Pod,
        socks: list[socket.socket],
        *,
        silent: Callable[[ConnectUdpUnsupported], None] = lambda _: None,
    ) -> None:
        """`silent` is told of workloads whose proxy does not take connect-udp, with what waited."""
        self.port: int = socks[0].getsockname()[1]
        self.ways = {way.family: way for way in _ways(pod, socks)}
        self.flows: UdpFlowTable[UdpFlow] = UdpFlowTable()
        self._context = context
        self._pod = pod
        self._silent = silent
        self._pairs: dict[FlowKey, UdpFlow] = {}  # by which flow the app's datagrams go
        self._refused: dict[FlowKey, float] = {}  # until when
        self._timer: Timer = context.loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        for way in self.ways.values():
            context.loop.register(way.sock.fileno(), READ, _Reader(self, way))

    # From the app

    def read(self, way: TokenCodec) -> None:
        """Take what apps have sent, up to one turn's share."""
        view = self._context.buffers.scratch.view
        receive = way.sock.recvmsg_into
        for _ in range(READ_BATCH):
            try:
                size, control, _, source = receive([view], CONTROL_SPACE)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error that belongs to nobody's flow
                log.debug("UDP receive failed", error=str(error))
                return
            read = way.read(control, source)
            if read is not None:
                self._from_app(way, view[:size], *read)

    def _from_app(
        self, way: TokenCodec, payload: memoryview, token: bytes, app: Address, connected: bool
    ) -> None:
        pair = (way.family, app[1], token)
        flow = self._pairs.get(pair)
        if flow is not None and flow.is_stale:
            flow.end("")
            flow = None
        if flow is None:
            flow = self._begin(way, pair)
            if flow is None:
                self._context.tracker.udp_dropped(UdpDropReason.BUFFER_FULL)
                return
        if flow.app != app or flow.connected is not connected:
            flow.see(app, connected=connected)
        flow.send(payload)
        if flow.inbound:
            self.flows.touch_reply(flow, self._context.loop.now)
        else:
            self.flows.touch(flow, self._context.loop.now)

    def _begin(self, way: TokenCodec, pair: FlowKey) -> UdpFlow | None:
        """A flow for the app's first datagram to a remote, unless there may be none."""
        if pair in self._refused:
            return None
        if not self._make_room():
            self._context.tracker.udp_dropped(UdpDropReason.FLOW_LIMIT)
            return None
        client = SocketAddress(way.pod_ip, pair[1])
        target = "unknown"
        try:
            remote = self._context.udp_remote(way.sock, socket.inet_ntoa(pair[2]))
            target = str(remote)
            return self._ask(way, pair, client, remote)
        except (_RefusedError, OSError) as error:
            self._refuse(pair)
            self._context.tracker.connection_refused(
                Direction.OUTBOUND, str(client), target, str(error), protocol="udp"
            )
            return None

    def _ask(
        self, way: TokenCodec, pair: FlowKey, client: SocketAddress, remote: SocketAddress
    ) -> UdpFlow:
        """Decide, and ask the pool for a tunnel. Raises _RefusedError."""
        context = self._context
        mesh = context.mesh
        source = mesh.workload(self._pod.workload) if mesh is not None else None
        credentials = context.credentials.get(self._pod.identity)
        if mesh is None or source is None or credentials is None:
            raise _RefusedError("no mesh state or no certificate from the agent yet")
        decision = route_udp(mesh, source, remote, random.random())
        if isinstance(decision, Refuse):
            raise _RefusedError(decision.reason)
        workload = decision.workload
        record = context.tracker.connection_opened(
            Direction.OUTBOUND,
            make_peer(client, source, source.identity),
            make_peer(decision.authority, workload),
            hbone_addr=str(decision.tunnel),
            service=decision.service,
            peers=ConnectionPeers(
                source,
                workload,
                mesh.service_by_name(decision.service) if decision.service else None,
                (source.identity, workload.identity),
            ),
            protocol="udp",
        )
        flow = UdpFlow(self, way, pair, record)
        flow.remote = remote
        self._keep(flow)
        key = PoolKey(
            pod_uid=self._pod.uid,
            source=self._pod.identity,
            expected=frozenset(decision.identities),
            address=decision.tunnel,
            workload=workload.uid,
            workload_pod=workload.pod_uid,
        )
        headers = self._request(source, client, decision)
        lent = DialContext(self._pod.socket_pool_for(decision.tunnel), credentials)

        def ready(tunnel: Tunnel | None, reason: str) -> None:
            self._tunnel_ready(flow, workload, headers, tunnel, reason)

        context.pool.acquire(key, lent, ready, settled=True)
        return flow

    def _request(self, source: Workload, client: SocketAddress, decision: Hbone) -> list[Header]:
        trace, span = random.getrandbits(128), random.getrandbits(64)
        return [
            (b":method", b"CONNECT"),
            (b":protocol", PROTOCOL),
            (b":scheme", b"https"),
            (b":authority", str(decision.tunnel).encode()),
            (b":path", format_target(decision.authority).encode()),
            CAPSULE_PROTOCOL,
            (b"baggage", self._pod.baggage(source)),
            (b"forwarded", format_forwarded(client, decision.service).encode()),
            (b"traceparent", f"00-{trace:032x}-{span:016x}-00".encode()),
        ]

    def _tunnel_ready(
        self,
        flow: UdpFlow,
        workload: Workload,
        headers: list[Header],
        tunnel: Tunnel | None,
        reason: str,
    ) -> None:
        if flow.is_over:
            return
        if tunnel is None:
            flow.end(reason)
        elif not tunnel.connection.peer_extended_connect:
            self._silent(self._unsent(flow, workload))
            flow.end("the destination's proxy does not take connect-udp")
        else:
            flow.record.destination = with_identity(flow.record.destination, tunnel.peer)
            flow.open(tunnel, headers)

    def _unsent(self, flow: UdpFlow, workload: Workload) -> ConnectUdpUnsupported:
        """What waited is to be sent as it is, but not to a service's endpoint: the answer would
        come from whom the app does not know."""
        waited = flow.take_early()
        if flow.record.service:
            for _ in waited:
                self.dropped(flow)
            return ConnectUdpUnsupported(workload.uid)
        source = SocketAddress(flow.way.pod_ip, flow.pair[1])
        return ConnectUdpUnsupported(workload.uid, self._pod.uid, source, flow.remote, waited)

    # From a peer

    def serve(
        self,
        tunnel: Tunnel,
        stream_id: int,
        accepted: Accept,
        record: Record,
        ended: Callable[[str], None],
    ) -> UdpFlow | None:
        """Carry a flow that a peer asked for and that was let in; None when there is no room.

        Raises OSError when the kernel has no token for the client.
        """
        if not self._make_room():
            self._context.tracker.udp_dropped(UdpDropReason.FLOW_LIMIT)
            return None
        way = self.ways.get(family_of(accepted.destination.ip))
        if way is None or family_of(accepted.client.ip) != way.family:
            raise OSError(errno.EAFNOSUPPORT, "the client's address is of another family")
        token = socket.inet_aton(self._context.udp_token(way.sock, accepted.client))
        pair = (way.family, accepted.destination.port, token)
        flow = UdpFlow(self, way, pair, record)
        flow.ended = ended
        former = self._pairs.get(pair)
        if former is not None and former.inbound:
            flow.see(former.app, connected=former.connected)
            former.end("")  # the client has moved to another tunnel
        flow.serve(tunnel, stream_id)
        self._keep(flow)
        return flow

    # What flows tell

    def deliver(self, flow: UdpFlow, payload: memoryview) -> None:
        try:
            flow.way.sock.sendmsg([payload], flow.control, 0, flow.app)
        except OSError:  # the app's buffer is full, or nobody is there
            self.dropped(flow)
        now = self._context.loop.now
        if flow.inbound:
            self.flows.touch(flow, now)
        else:
            self.flows.touch_reply(flow, now)

    def dropped(self, flow: UdpFlow) -> None:
        flow.record.dropped += 1
        self._context.tracker.udp_dropped(UdpDropReason.BUFFER_FULL)

    def over(self, flow: UdpFlow, error: str) -> None:
        self.flows.remove(flow)
        if self._pairs.get(flow.pair) is flow:
            del self._pairs[flow.pair]
            if error and not flow.inbound:
                self._refuse(flow.pair)
        if flow.ended is not None:
            flow.ended(error)
        else:
            self._context.tracker.connection_closed(flow.record, error)

    # All flows

    def abort(self, reason: str) -> None:
        """End every flow, and the socket."""
        for flow in self.flows.all():
            flow.abort(reason)
        self._close()

    def drain(self) -> None:
        """The pod goes out of our hands: flows have no end that one could wait for."""
        for flow in self.flows.all():
            flow.drain()
        self._close()

    def _close(self) -> None:
        self._timer.cancel()
        for way in self.ways.values():
            self._context.loop.close(way.sock)

    def _keep(self, flow: UdpFlow) -> None:
        self.flows.add(flow, self._context.loop.now)
        self._pairs.setdefault(flow.pair, flow)

    def _make_room(self) -> bool:
        if not self.flows.is_full:
            return True
        spare = self.flows.eviction_candidate(self._context.loop.now)
        if spare is not None:
            spare.end("gave way to a newer flow")
        return spare is not None

    def _refuse(self, pair: FlowKey) -> None:
        if len(self._refused) < MAX_REFUSED_FLOWS:
            self._refused[pair] = self._context.loop.now + REFUSED_TTL_S

    def _sweep(self) -> None:
        now = self._context.loop.now
        self._timer = self._context.loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        for flow in self.flows.expired(now):
            flow.end("")
        if self._refused:
            self._refused = {pair: end for pair, end in self._refused.items() if end > now}


class _Reader:
    """What the loop wakes for one of the sockets."""

    def __init__(self, udp: PodUdp, way: TokenCodec) -> None:
        self._udp = udp
        self._way = way

    def on_ready(self, mask: int) -> None:
        self._udp.read(self._way)

    def on_failure(self, error: Exception) -> None:
        """Keep the socket: one bad datagram must not end a pod's UDP."""


def _ways(pod: Pod, socks: list[socket.socket]) -> list[TokenCodec]:
    return [
        TokenCodec6(sock, pod.address(6))
        if sock.family == socket.AF_INET6
        else TokenCodec4(sock, pod.address(4))
        for sock in socks
    ]


class _RefusedError(Exception):
    """There may be no such flow; the text says why."""
