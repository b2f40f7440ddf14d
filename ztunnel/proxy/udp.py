# SPDX-License-Identifier: Apache-2.0
"""The UDP of a pod, as far as one worker carries it: one socket inside the pod, many flows.

To an app each remote address is a loopback address of its own, the token (bpf/zt_udp.h): what the
app sends to a remote comes to our socket with the token as destination, and what we send it from
the token it reads as from the remote.

    app ── datagram ──▶ token? port? ─ known ──▶ flow ──▶ stream
                                     └ new ────▶ remote? ─▶ decided ─▶ tunnel asked for ─▶ CONNECT
    app ◀── datagram ── token ◀── flow ◀── stream (of ours, or one that a peer opened)

May import the proxy's parts below connections.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable

import structlog

from ztunnel.datapath.udp import IP_PKTINFO
from ztunnel.hbone.events import Header
from ztunnel.mesh.forwarded import format_forwarded
from ztunnel.mesh.inbound import Accept
from ztunnel.mesh.masque import PROTOCOL, format_target
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.route import Hbone, Refuse, route_udp
from ztunnel.proxy.context import Context
from ztunnel.proxy.flows import Flows
from ztunnel.proxy.loop import READ, Timer
from ztunnel.proxy.pods import Pod
from ztunnel.proxy.pool import Key, Source
from ztunnel.proxy.report import Direction, Record, party, proven
from ztunnel.proxy.tunnel import Tunnel
from ztunnel.proxy.udp_flow import CAPSULES, Pair, UdpFlow

SWEEP = 1.0  # seconds between looks for idle flows
PATIENCE = 1.0  # seconds in which datagrams to whom we just failed to reach are dropped
DATAGRAMS = 128  # read in one turn, so that others keep their share
MOST_REFUSED = 4096  # pairs remembered for PATIENCE
_PKTINFO = struct.Struct("=i4s4s")  # struct in_pktinfo
_CONTROL = socket.CMSG_SPACE(_PKTINFO.size)

log = structlog.get_logger()


class PodUdp:
    """One pod's UDP in this worker; the socket is the agent's work (`datapath.udp.udp_socket`)."""

    def __init__(
        self,
        context: Context,
        pod: Pod,
        sock: socket.socket,
        *,
        silent: Callable[[Workload], None] = lambda _: None,
    ) -> None:
        """`silent` is told of workloads whose proxy does not take connect-udp."""
        self.sock = sock
        self.flows: Flows[UdpFlow] = Flows()
        self._context = context
        self._pod = pod
        self._silent = silent
        self._pairs: dict[Pair, UdpFlow] = {}  # by which flow the app's datagrams go
        self._refused: dict[Pair, float] = {}  # until when
        self._timer: Timer = context.loop.call_later(SWEEP, self._sweep)
        context.loop.register(sock.fileno(), READ, self)
        pod.live.add(self)

    # From the app

    def on_ready(self, mask: int) -> None:
        view = self._context.buffers.scratch.view
        receive = self.sock.recvmsg_into
        for _ in range(DATAGRAMS):
            try:
                size, control, _, app = receive([view], _CONTROL)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error that belongs to nobody's flow
                log.debug("UDP receive failed", error=str(error))
                return
            if control:
                self._from_app(view[:size], control[0][2][8:12], app)

    def on_failure(self, error: Exception) -> None:
        """Keep the socket: one bad datagram must not end a pod's UDP."""

    def _from_app(self, payload: memoryview, token: bytes, app: tuple[str, int]) -> None:
        pair = (app[1], token)
        flow = self._pairs.get(pair)
        if flow is not None and flow.is_stale:
            flow.end("")
            flow = None
        if flow is None:
            flow = self._begin(pair, app)
            if flow is None:
                self._context.report.stats.udp_dropped += 1
                return
        flow.app = app
        flow.send(payload)
        if flow.inbound:
            self.flows.answered(flow, self._context.loop.now)
        else:
            self.flows.used(flow, self._context.loop.now)

    def _begin(self, pair: Pair, app: tuple[str, int]) -> UdpFlow | None:
        """A flow for the app's first datagram to a remote, unless there may be none."""
        if pair in self._refused:
            return None
        if not self._make_room():
            self._context.report.stats.udp_refused += 1
            return None
        client = SocketAddress(self._pod.address(4), pair[0])
        target = "unknown"
        try:
            remote = self._context.udp_remote(self.sock, socket.inet_ntoa(pair[1]))
            target = str(remote)
            return self._ask(pair, app, client, remote)
        except (_RefusedError, OSError) as error:
            self._refuse(pair)
            self._context.report.refused(Direction.OUTBOUND, str(client), target, str(error))
            return None

    def _ask(
        self, pair: Pair, app: tuple[str, int], client: SocketAddress, remote: SocketAddress
    ) -> UdpFlow:
        """Decide, and ask the pool for a tunnel. Raises _RefusedError."""
        context = self._context
        mesh = context.mesh
        source = mesh.workload(self._pod.workload) if mesh is not None else None
        credentials = context.credentials.get(self._pod.identity)
        if mesh is None or source is None or credentials is None:
            raise _RefusedError("no mesh state or no certificate from the agent yet")
        decision = route_udp(mesh, remote)
        if isinstance(decision, Refuse):
            raise _RefusedError(decision.reason)
        workload = decision.workload
        record = context.report.begin(
            Direction.OUTBOUND,
            party(client, source, source.identity),
            party(remote, workload),
            hbone_addr=str(decision.tunnel),
        )
        record.protocol = "udp"
        flow = UdpFlow(self, pair, app, record)
        self._keep(flow)
        key = Key(
            pod_uid=self._pod.uid,
            source=self._pod.identity,
            expected=frozenset(decision.identities),
            address=decision.tunnel,
            workload=workload.uid,
            workload_pod=workload.pod_uid,
        )
        headers = self._request(source, client, decision)
        lent = Source(self._pod.stock_for(decision.tunnel), credentials)

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
            CAPSULES,
            (b"baggage", self._pod.baggage(source)),
            (b"forwarded", format_forwarded(client).encode()),
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
            self._silent(workload)
            flow.end("the destination's proxy does not take connect-udp")
        else:
            flow.record.destination = proven(flow.record.destination, tunnel.peer)
            flow.open(tunnel, headers)

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
            self._context.report.stats.udp_refused += 1
            return None
        token = socket.inet_aton(self._context.udp_token(self.sock, accepted.client))
        record.protocol = "udp"
        pair = (accepted.destination.port, token)
        app = (accepted.destination.ip, accepted.destination.port)
        flow = UdpFlow(self, pair, app, record)
        flow.ended = ended
        former = self._pairs.get(pair)
        if former is not None and former.inbound:
            flow.app = former.app
            former.end("")  # the client has moved to another tunnel
        flow.serve(tunnel, stream_id)
        self._keep(flow)
        return flow

    # What flows tell

    def deliver(self, flow: UdpFlow, payload: memoryview) -> None:
        control = [(socket.IPPROTO_IP, IP_PKTINFO, flow.info)]
        try:
            self.sock.sendmsg([payload], control, 0, flow.app)
        except OSError:  # the app's buffer is full, or nobody is there
            self.dropped(flow)
        now = self._context.loop.now
        if flow.inbound:
            self.flows.used(flow, now)
        else:
            self.flows.answered(flow, now)

    def dropped(self, flow: UdpFlow) -> None:
        flow.record.dropped += 1
        self._context.report.stats.udp_dropped += 1

    def over(self, flow: UdpFlow, error: str) -> None:
        self.flows.remove(flow)
        if self._pairs.get(flow.pair) is flow:
            del self._pairs[flow.pair]
            if error and not flow.inbound:
                self._refuse(flow.pair)
        if flow.ended is not None:
            flow.ended(error)
        else:
            self._context.report.end(flow.record, error)

    # All flows

    def abort(self, reason: str) -> None:
        """End every flow, and the socket."""
        for flow in self.flows.all():
            flow.abort(reason)
        self._close()

    def retire(self) -> None:
        """The pod goes out of our hands: flows have no end that one could wait for."""
        for flow in self.flows.all():
            flow.retire()
        self._close()

    def _close(self) -> None:
        self._timer.cancel()
        self._pod.live.discard(self)
        self._context.loop.close(self.sock)

    def _keep(self, flow: UdpFlow) -> None:
        flow.info = _PKTINFO.pack(0, flow.pair[1], bytes(4))
        self.flows.add(flow, self._context.loop.now)
        self._pairs.setdefault(flow.pair, flow)

    def _make_room(self) -> bool:
        if not self.flows.is_full:
            return True
        spare = self.flows.spare(self._context.loop.now)
        if spare is not None:
            spare.end("gave way to a newer flow")
        return spare is not None

    def _refuse(self, pair: Pair) -> None:
        if len(self._refused) < MOST_REFUSED:
            self._refused[pair] = self._context.loop.now + PATIENCE

    def _sweep(self) -> None:
        now = self._context.loop.now
        self._timer = self._context.loop.call_later(SWEEP, self._sweep)
        for flow in self.flows.expired(now):
            flow.end("")
        if self._refused:
            self._refused = {pair: end for pair, end in self._refused.items() if end > now}


class _RefusedError(Exception):
    """There may be no such flow; the text says why."""
