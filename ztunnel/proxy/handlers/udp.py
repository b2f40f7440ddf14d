# SPDX-License-Identifier: Apache-2.0
"""The UDP of a pod in one worker: one socket per IP family inside the pod, and many flows.

A token address stands for each remote address (decision 0015): a datagram that an application sends
arrives with the token of its destination, and the application sees a datagram that the proxy sends
from the token as sent by the remote.

    app ── datagram ──▶ (port, token) ─ known flow ──────────────────▶ stream
                                      └ new ─▶ remote ─▶ routed ─▶ tunnel ─▶ CONNECT
    app ◀── datagram ── token ◀── flow ◀── stream (opened here, or by a peer)
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

SWEEP_INTERVAL_S = 1.0  # between checks for idle flows
REFUSED_TTL_S = 1.0  # after a failure, datagrams of the same flow are dropped for this time
READ_BATCH = 128  # datagrams per turn, so that other sockets are served too
MAX_REFUSED_FLOWS = 4096  # remembered for REFUSED_TTL_S

log = structlog.get_logger()


class PodUdp:
    """One pod's UDP in this worker. The agent creates the sockets."""

    def __init__(
        self,
        context: Context,
        pod: Pod,
        socks: list[socket.socket],
        *,
        on_unsupported: Callable[[ConnectUdpUnsupported], None] = lambda _: None,
    ) -> None:
        """`on_unsupported` is called for workloads whose proxy does not support connect-udp."""
        self.port: int = socks[0].getsockname()[1]
        self.codecs = {codec.family: codec for codec in _codecs(pod, socks)}
        self.flows: UdpFlowTable[UdpFlow] = UdpFlowTable()
        self._context = context
        self._pod = pod
        self._on_unsupported = on_unsupported
        self._flows_by_key: dict[FlowKey, UdpFlow] = {}  # for datagrams of applications
        self._refused: dict[FlowKey, float] = {}  # monotonic seconds of expiry
        self._timer: Timer = context.loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        for codec in self.codecs.values():
            context.loop.register(codec.sock.fileno(), READ, _Reader(self, codec))

    # From the application

    def read(self, codec: TokenCodec) -> None:
        """Read datagrams of applications, up to READ_BATCH."""
        view = self._context.buffers.scratch.view
        receive = codec.sock.recvmsg_into
        for _ in range(READ_BATCH):
            try:
                size, control, _, source = receive([view], CONTROL_SPACE)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error without a flow
                log.debug("udp receive failed", error=str(error))
                return
            read = codec.read(control, source)
            if read is not None:
                self._from_app(codec, view[:size], *read)

    def _from_app(
        self, codec: TokenCodec, payload: memoryview, token: bytes, app: Address, connected: bool
    ) -> None:
        key = (codec.family, app[1], token)
        flow = self._flows_by_key.get(key)
        if flow is not None and flow.is_stale:
            flow.close("")
            flow = None
        if flow is None:
            flow = self._begin(codec, key)
            if flow is None:
                self._context.tracker.udp_dropped(UdpDropReason.BUFFER_FULL)
                return
        if flow.app != app or flow.connected is not connected:
            flow.set_app(app, connected=connected)
        flow.send(payload)
        if flow.inbound:
            self.flows.touch_reply(flow, self._context.loop.now)
        else:
            self.flows.touch(flow, self._context.loop.now)

    def _begin(self, codec: TokenCodec, key: FlowKey) -> UdpFlow | None:
        """A flow for the first datagram to a remote; None if it is refused."""
        if key in self._refused:
            return None
        if not self._make_room():
            self._context.tracker.udp_dropped(UdpDropReason.FLOW_LIMIT)
            return None
        client = SocketAddress(codec.pod_ip, key[1])
        target = "unknown"
        try:
            remote = self._context.udp_remote(codec.sock, socket.inet_ntoa(key[2]))
            target = str(remote)
            return self._open_flow(codec, key, client, remote)
        except (_RefusedError, OSError) as error:
            self._block(key)
            self._context.tracker.connection_refused(
                Direction.OUTBOUND, str(client), target, str(error), protocol="udp"
            )
            return None

    def _open_flow(
        self, codec: TokenCodec, key: FlowKey, client: SocketAddress, remote: SocketAddress
    ) -> UdpFlow:
        """Route the flow and request a tunnel. Raises _RefusedError."""
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
        flow = UdpFlow(self, codec, key, record)
        flow.remote = remote
        self._add_flow(flow)
        pool_key = PoolKey(
            pod_uid=self._pod.uid,
            source=self._pod.identity,
            expected=frozenset(decision.identities),
            address=decision.tunnel,
            workload=workload.uid,
            workload_pod=workload.pod_uid,
        )
        headers = self._request(source, client, decision)
        sockets = self._pod.socket_pool_for(decision.tunnel)
        dial = DialContext(sockets, credentials, self._pod.share)

        def tunnel_ready(tunnel: Tunnel | None, reason: str) -> None:
            self._tunnel_ready(flow, workload, headers, tunnel, reason)

        context.pool.acquire(pool_key, dial, tunnel_ready, settled=True)
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
        if flow.is_closed:
            return
        if tunnel is None:
            flow.close(reason)
        elif not tunnel.connection.peer_extended_connect:
            self._on_unsupported(self._unsent(flow, workload))
            flow.close("the destination's proxy does not support connect-udp")
        else:
            flow.record.destination = with_identity(flow.record.destination, tunnel.peer)
            flow.open(tunnel, headers)

    def _unsent(self, flow: UdpFlow, workload: Workload) -> ConnectUdpUnsupported:
        """The early datagrams, for the agent to send without a tunnel.

        Datagrams to a service are dropped instead: the endpoint's reply would come from an address
        that the application does not know.
        """
        waiting = flow.pop_early()
        if flow.record.service:
            for _ in waiting:
                self.datagram_dropped(flow)
            return ConnectUdpUnsupported(workload.uid)
        source = SocketAddress(flow.codec.pod_ip, flow.key[1])
        return ConnectUdpUnsupported(workload.uid, self._pod.uid, source, flow.remote, waiting)

    # From a peer

    def serve(
        self,
        tunnel: Tunnel,
        stream_id: int,
        accepted: Accept,
        record: Record,
        ended: Callable[[str], None],
    ) -> UdpFlow | None:
        """Start a flow that a peer requested and policy authorized; None at the flow limit.

        Raises OSError when the kernel has no token for the client. `ended` is called at the end.
        """
        if not self._make_room():
            self._context.tracker.udp_dropped(UdpDropReason.FLOW_LIMIT)
            return None
        codec = self.codecs.get(family_of(accepted.destination.ip))
        if codec is None or family_of(accepted.client.ip) != codec.family:
            raise OSError(errno.EAFNOSUPPORT, "the client's address is of another family")
        token = socket.inet_aton(self._context.udp_token(codec.sock, accepted.client))
        key = (codec.family, accepted.destination.port, token)
        flow = UdpFlow(self, codec, key, record)
        flow.on_closed = ended
        former = self._flows_by_key.get(key)
        if former is not None and former.inbound:
            flow.set_app(former.app, connected=former.connected)
            former.close("")  # the client moved to another tunnel
        flow.serve(tunnel, stream_id)
        self._add_flow(flow)
        return flow

    # Events of the flows

    def deliver(self, flow: UdpFlow, payload: memoryview) -> None:
        try:
            flow.codec.sock.sendmsg([payload], flow.control, 0, flow.app)
        except OSError:  # the application's buffer is full, or its socket is closed
            self.datagram_dropped(flow)
        now = self._context.loop.now
        if flow.inbound:
            self.flows.touch(flow, now)
        else:
            self.flows.touch_reply(flow, now)

    def datagram_dropped(self, flow: UdpFlow) -> None:
        flow.record.dropped += 1
        self._context.tracker.udp_dropped(UdpDropReason.BUFFER_FULL)

    def flow_closed(self, flow: UdpFlow, error: str) -> None:
        self.flows.remove(flow)
        if self._flows_by_key.get(flow.key) is flow:
            del self._flows_by_key[flow.key]
            if error and not flow.inbound:
                self._block(flow.key)
        if flow.on_closed is not None:
            flow.on_closed(error)
        else:
            self._context.tracker.connection_closed(flow.record, error)

    # All flows

    def abort(self, reason: str) -> None:
        """Close every flow with an error, and the sockets."""
        for flow in self.flows.all():
            flow.abort(reason)
        self._close()

    def drain(self) -> None:
        """Close every flow and the sockets: flows do not end by themselves."""
        for flow in self.flows.all():
            flow.drain()
        self._close()

    def _close(self) -> None:
        self._timer.cancel()
        for codec in self.codecs.values():
            self._context.loop.close(codec.sock)

    def _add_flow(self, flow: UdpFlow) -> None:
        self.flows.add(flow, self._context.loop.now)
        self._flows_by_key.setdefault(flow.key, flow)

    def _make_room(self) -> bool:
        if not self.flows.is_full:
            return True
        candidate = self.flows.eviction_candidate(self._context.loop.now)
        if candidate is not None:
            candidate.close("evicted for a newer flow")
        return candidate is not None

    def _block(self, key: FlowKey) -> None:
        if len(self._refused) < MAX_REFUSED_FLOWS:
            self._refused[key] = self._context.loop.now + REFUSED_TTL_S

    def _sweep(self) -> None:
        now = self._context.loop.now
        self._timer = self._context.loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        for flow in self.flows.expired(now):
            flow.close("")
        if self._refused:
            self._refused = {key: end for key, end in self._refused.items() if end > now}


class _Reader:
    """Handles the loop's events of one socket."""

    def __init__(self, udp: PodUdp, codec: TokenCodec) -> None:
        self._udp = udp
        self._way = codec

    def on_ready(self, mask: int) -> None:
        self._udp.read(self._way)

    def on_failure(self, error: Exception) -> None:
        """Keep the socket: one bad datagram must not stop a pod's UDP."""


def _codecs(pod: Pod, socks: list[socket.socket]) -> list[TokenCodec]:
    return [
        TokenCodec6(sock, pod.address(6))
        if sock.family == socket.AF_INET6
        else TokenCodec4(sock, pod.address(4))
        for sock in socks
    ]


class _RefusedError(Exception):
    """The flow is refused; the text is the reason."""
