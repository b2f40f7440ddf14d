# SPDX-License-Identifier: Apache-2.0
"""Outbound connections through an HBONE tunnel: one CONNECT stream each.

A connection to a waypoint whose pod is on this node needs no tunnel (`waypoint_handover`).
"""

from __future__ import annotations

import random
import socket

from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Header
from ztunnel.mesh.headers.forwarded import format_forwarded
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.routing.inbound import DENIED
from ztunnel.proxy.conntrack.record import Direction, Record
from ztunnel.proxy.conntrack.tracker import make_peer
from ztunnel.proxy.context import Context
from ztunnel.proxy.handlers.outbound_connection import (
    AWAITING_RESPONSE,
    AWAITING_TUNNEL,
    CLOSED,
    RELAYING,
    OutboundConnection,
)
from ztunnel.proxy.handlers.waypoint_handover import (
    LocalWaypoint,
    WaypointHandover,
    find_local_waypoint,
)
from ztunnel.proxy.handlers.waypoint_retry import RETRIED_STATUSES, Planner, RetrySchedule
from ztunnel.proxy.io.event_loop import INPUT, Timer
from ztunnel.proxy.io.sockets import fin_on_close
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tls.credentials import Credentials
from ztunnel.proxy.tunnel.connection_plan import ConnectionPlan
from ztunnel.proxy.tunnel.pool import DialContext
from ztunnel.proxy.tunnel.socket_relay import SocketRelay
from ztunnel.proxy.tunnel.stream_relay import StreamRelay
from ztunnel.proxy.tunnel.tunnel import EARLY_DATA_BYTES, Tunnel
from ztunnel.telemetry.response_flags import Flag, Reason

RESPONSE_TIMEOUT_S = 20.0  # for the remote proxy's response: its own connect may take 10 s
_NONZERO_IDS = 1 << 64 | 1  # W3C trace context: neither trace ID nor span ID may be 0


class HboneOutbound(OutboundConnection):
    """One connection of an application, and its stream until the relay replaces it.

    AWAITING_TUNNEL → AWAITING_RESPONSE → RELAYING → CLOSED
           ▲                 │ a waypoint rejects it for now: see `waypoint_retry`
           └─────────────────┘
    AWAITING_RESPONSE also covers the attempt to hand the connection over without a tunnel.
    """

    def __init__(
        self,
        context: Context,
        pod: Pod,
        sock: socket.socket,
        client: SocketAddress,
        plan: ConnectionPlan,
        *,
        planner: Planner,
    ) -> None:
        record = context.tracker.connection_opened(
            Direction.OUTBOUND,
            make_peer(client, plan.source, plan.identity),
            plan.destination,
            hbone_addr=plan.authority,
            service=plan.decision.service,
            peers=plan.peers,
        )
        super().__init__(context, pod, sock, record, AWAITING_TUNNEL)
        self.stream_id = 0
        self._client = client
        self._plan = plan
        self._tunnel: Tunnel | None = None
        self._timer: Timer | None = None
        self._sent_early_data = False
        self._planner = planner
        self._retries: RetrySchedule | None = None
        self._early_data = b""  # to a waypoint, for another attempt
        self._handover: WaypointHandover | None = None  # instead of a tunnel

    def start(self, credentials: Credentials) -> None:
        """Request a tunnel from the pool, unless the destination's waypoint is on this node."""
        if self._plan.to_waypoint:
            waypoint = find_local_waypoint(self._context, self._plan, self._client, credentials)
            if waypoint is not None:
                self._hand_over(waypoint)
                return
        sockets = self._pod.socket_pool_for(self._plan.decision.tunnel)
        dial = DialContext(sockets, credentials, self._pod.share)
        self._context.pool.acquire(self._plan.key, dial, self._tunnel_ready)

    def _tunnel_ready(self, tunnel: Tunnel | None, reason: str) -> None:
        if self._state is CLOSED:
            return
        if tunnel is None:
            if not self._retry():
                self._fail(reason)
            return
        self._tunnel = tunnel
        self._state = AWAITING_RESPONSE
        self._record.destination = self._plan.proven_destination(tunnel.peer)
        self.stream_id = tunnel.open(self._headers(), self, self._plan.head)
        self._timer = self._context.loop.add_timeout(RESPONSE_TIMEOUT_S, self._no_response)
        if self._early_data:
            self._repeat_early_data(tunnel)
        else:
            self._send_early_data(tunnel)

    def _headers(self) -> tuple[Header, ...]:
        """The request headers that differ between connections of one plan."""
        self._begin_trace()
        forwarded = format_forwarded(self._client, self._plan.decision.service)
        return (
            (b"forwarded", forwarded.encode()),
            (b"traceparent", self._record.trace.encode()),
        )

    def _begin_trace(self) -> None:
        ids = (random.getrandbits(192) | _NONZERO_IDS).to_bytes(24, "big").hex()
        sampled = "00" if self._context.tracker.tracer is None else "01"
        self._record.trace = f"00-{ids[:32]}-{ids[32:]}-{sampled}"

    def _on_early_data(self) -> None:
        if self._tunnel is not None and not self._sent_early_data:
            self._send_early_data(self._tunnel)

    def _send_early_data(self, tunnel: Tunnel) -> None:
        """Send what the application has written without waiting for the response: one RTT less.

        The peer has proven to be the destination, and delivers the data only after it authorized
        the connection. The relay handles the end of the application's data.
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
        self._sent_early_data = True
        self._record.sent += count
        if self._plan.to_waypoint:
            self._early_data = bytes(room[:count])
        tunnel.commit(self.stream_id, count)

    # A waypoint on this node

    def _hand_over(self, waypoint: LocalWaypoint) -> None:
        self._state = AWAITING_RESPONSE
        self._record.destination = self._plan.proven_destination(waypoint.pod.identity)
        self._begin_trace()
        self._handover = WaypointHandover(
            self._context,
            waypoint,
            self,
            plan=self._plan,
            client=self._client,
            trace=self._record.trace,
        )
        self._handover.start()

    @property
    def has_data(self) -> bool:
        """Whether bytes of the application are there to follow the PROXY header."""
        return bool(self._early_data) or bool(self._seen_events & INPUT)

    def handed_over(self, sock: socket.socket, record: Record, seen_events: int) -> None:
        """The waypoint's Envoy accepts: relay between the two sockets."""
        context = self._context
        relay = SocketRelay(
            context.loop,
            context.buffers,
            self._sock,
            sock,
            record=self._record,
            ended=self._relay_ended,
            share=self._pod.share,
            server_record=record,
        )
        early_data, self._early_data = self._early_data, b""
        self._state = RELAYING
        self._relay = relay
        relay.begin(self._seen_events, server_events=seen_events, early_data=early_data)

    def handover_refused(self, status: int) -> None:
        """The waypoint's half refused the connection, with the status of a CONNECT."""
        self._handover = None
        self._refused(status)

    # Further attempts

    def _retry(self) -> bool:
        """Schedule another attempt, if the destination has a waypoint and there is time left."""
        loop = self._context.loop
        if not self._plan.to_waypoint:
            return False
        if self._retries is None:
            self._retries = RetrySchedule(loop.now)
        delay = self._retries.next_delay(loop.now)
        if delay < 0:
            return False
        self._release_setup()
        self._tunnel = None
        self._state = AWAITING_TUNNEL
        self._timer = loop.call_later(delay, self._try_again)
        return True

    def _try_again(self) -> None:
        self._timer = None
        plan = self._planner.plan_again(self._plan.decision.authority)
        credentials = self._context.credentials.get(self._pod.identity)
        if isinstance(plan, str):
            self._fail(plan)
        elif credentials is None:
            self._fail(Reason(f"no certificate for {self._pod.identity}", Flag.IDENTITY_ERROR))
        else:
            self._plan = plan
            self._record.destination, self._record.hbone_addr = plan.destination, plan.authority
            self.start(credentials)

    def _repeat_early_data(self, tunnel: Tunnel) -> None:
        """Send what an earlier attempt sent, and the waypoint did not deliver."""
        room = tunnel.claim(self)
        size = len(self._early_data)
        if room is None or len(room) < size:
            if room is not None:
                tunnel.abandon()
            if not self._retry():
                self._fail("the tunnel has no room to repeat the request")
            return
        room[:size] = self._early_data
        tunnel.commit(self.stream_id, size)

    def _no_response(self) -> None:
        self._fail(f"no response to CONNECT within {RESPONSE_TIMEOUT_S:.0f} s")

    # Events of the stream

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None:
        if status != 200:
            self._refused(status)
            return
        assert self._tunnel is not None
        self._stop_timer()
        self._early_data = b""
        relay = StreamRelay(
            self._context.loop,
            self._tunnel,
            self.stream_id,
            self._sock,
            record=self._record,
            ended=self._relay_ended,
        )
        self._start_relay(relay)

    def _refused(self, status: int) -> None:
        if status in RETRIED_STATUSES and self._retry():
            return
        flag = Flag.DENY if status == DENIED else Flag.CONNECT
        self._fail(Reason(f"the destination's proxy answered {status}", flag))

    def on_data(self, payload: memoryview) -> None:
        """The codec passes no data before a response; the peer gets its credit back anyway."""
        if self._tunnel is not None:
            self._tunnel.consumed(self.stream_id, len(payload))

    def on_end(self) -> None:
        self._fail("the destination's proxy ended the stream without a response")

    def on_reset(self, reason: str) -> None:
        tunnel, self._tunnel = self._tunnel, None  # the stream does not exist any more
        if tunnel is not None and not tunnel.connection.settings_received:
            reason = Reason(reason, Flag.H2_HANDSHAKE_FAILURE)
        self._fail(reason)

    def pump(self) -> None:
        """Only early data is sent before the response, and only once."""

    # Closing

    def _release_setup(self) -> None:
        self._stop_timer()
        if self._tunnel is not None:
            self._tunnel.reset(self.stream_id, ErrorCode.CANCEL)
        handover, self._handover = self._handover, None
        if handover is not None:
            handover.cancel("the client's connection ended")

    def _release_socket(self, sock: socket.socket) -> None:
        if self._handover is not None:
            self._handover.recycle(sock)  # the relay has closed the application's
            return
        fin_on_close(sock)
        self._context.loop.close(sock, unshared=True)

    def _finish(self, error: str) -> None:
        self._tunnel = None
        handover, self._handover = self._handover, None
        if handover is not None:
            handover.finish(error)
        super()._finish(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
