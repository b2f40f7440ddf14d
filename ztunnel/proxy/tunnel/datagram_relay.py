# SPDX-License-Identifier: Apache-2.0
"""One UDP flow: the datagrams between an app's port and a remote address, on one stream.

    outbound: ASKING (tunnel awaited) → OPEN (CONNECT sent, datagrams may follow) → over
    inbound:                            OPEN (200 sent)                            → over

Nothing waits for long: what the tunnel does not take now is dropped and counted, as any router
would. Only a datagram that was begun is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ztunnel.hbone.capsule import CapsuleReader, datagram_header
from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Header
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.conntrack.record import Record
from ztunnel.proxy.tunnel.tunnel import Tunnel, TunnelState
from ztunnel.proxy.tunnel.udp_token_address import Address, TokenCodec

MAX_EARLY_DATAGRAMS = 16  # datagrams that wait for the tunnel to be made
MAX_EARLY_BYTES = 256 * 1024  # of all of them: a link message holds 1 MiB
CAPSULE_PROTOCOL = (b"capsule-protocol", b"?1")  # RFC 9297 3.4

FlowKey = tuple[int, int, bytes]  # IP family, the app's port, the token of the remote (4 bytes)


class FlowOwner(Protocol):
    """Where flows live: `ztunnel.proxy.handlers.udp.PodUdp`."""

    def deliver(self, flow: UdpFlow, payload: memoryview) -> None:
        """Bring the app a datagram."""

    def dropped(self, flow: UdpFlow) -> None:
        """A datagram was lost for want of room."""

    def over(self, flow: UdpFlow, error: str) -> None:
        """The flow has let go of its stream."""


class UdpFlow:
    """A flow with its stream. `app` is where the app's socket was last seen: it may be loopback."""

    def __init__(self, pod: FlowOwner, way: TokenCodec, pair: FlowKey, record: Record) -> None:
        self.stream_id = 0
        self.pair = pair
        self.way = way
        self.record = record
        self.inbound = False
        self.see((way.pod_ip, pair[1]), connected=False)
        self.dropped = 0
        self.remote: SocketAddress | None = None  # what the app sends to, when it began the flow
        self.ended: Callable[[str], None] | None = None  # told at the end, instead of the report
        self._pod = pod
        self._tunnel: Tunnel | None = None
        self._reader = CapsuleReader()
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._rest = b""  # of a datagram that was begun
        self._over = False

    @property
    def is_stale(self) -> bool:
        """Whether its tunnel takes no new streams: a flow has no end, so who asked for it moves."""
        return (
            not self.inbound
            and self._tunnel is not None
            and self._tunnel.state is not TunnelState.OPEN
        )

    @property
    def is_over(self) -> bool:
        return self._over

    def see(self, app: Address, *, connected: bool) -> None:
        """Where the app's socket is now, and whether it is connected (see `Way6`)."""
        self.app = app
        self.connected = connected
        self.control = self.way.control(self.pair[2], connected=connected)

    # The stream

    def open(self, tunnel: Tunnel, headers: list[Header]) -> None:
        """Ask for the flow, and send what waits at once (RFC 9298 3.5 lets us)."""
        self._tunnel = tunnel
        self.stream_id = tunnel.open(headers, self)
        for payload in self.take_early():
            self._write(memoryview(payload))

    def take_early(self) -> tuple[bytes, ...]:
        """The datagrams that wait for the tunnel: they are the caller's now."""
        early, self._early = tuple(self._early), []
        return early

    def serve(self, tunnel: Tunnel, stream_id: int) -> None:
        """Grant the flow that a peer asked for."""
        self.inbound = True
        self._tunnel, self.stream_id = tunnel, stream_id
        tunnel.attach(stream_id, self)

    # From the app

    def send(self, payload: memoryview) -> None:
        """Send a datagram of the app, or drop it."""
        if self._tunnel is not None:
            self._write(payload)
        elif (
            len(self._early) < MAX_EARLY_DATAGRAMS
            and self._early_bytes + len(payload) <= MAX_EARLY_BYTES
        ):
            self._early_bytes += len(payload)
            self._early.append(bytes(payload))
        else:
            self._drop()

    def _write(self, payload: memoryview) -> None:
        tunnel, head = self._tunnel, datagram_header(len(payload))
        assert tunnel is not None
        total = len(head) + len(payload)
        if self._rest or tunnel.connection.window(self.stream_id) < total:
            self._drop()
            return
        room = tunnel.claim(self)
        if room is None:
            self._drop()
            return
        if len(room) >= total:
            room[: len(head)] = head
            room[len(head) : total] = payload
            tunnel.commit(self.stream_id, total)
        else:
            tunnel.abandon()
            self._rest = head + bytes(payload)
            self.pump()
        self._count(len(payload), from_app=True)

    def pump(self) -> None:
        """Finish the datagram that was begun."""
        while self._rest and self._tunnel is not None:
            room = self._tunnel.claim(self)
            if room is None:
                return
            count = min(len(room), len(self._rest))
            room[:count] = self._rest[:count]
            self._rest = self._rest[count:]
            self._tunnel.commit(self.stream_id, count)

    def _drop(self) -> None:
        self.dropped += 1
        self._pod.dropped(self)

    def _count(self, size: int, *, from_app: bool) -> None:
        if from_app:
            self.record.sent += size
        else:
            self.record.received += size

    # From the tunnel

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None:
        if not 200 <= status <= 299:
            self.end(f"the destination's proxy answered {status}")
        else:
            self.record.established = True

    def on_data(self, payload: memoryview) -> None:
        tunnel = self._tunnel
        for datagram in self._reader.feed(payload):
            self._count(len(datagram), from_app=False)
            self._pod.deliver(self, datagram)
        if tunnel is not None:
            tunnel.consumed(self.stream_id, len(payload))
        if self._reader.error:
            self.end(self._reader.error, ErrorCode.PROTOCOL_ERROR)

    def on_end(self) -> None:
        self.end("")

    def on_reset(self, reason: str) -> None:
        self._tunnel = None  # the stream is gone already
        self.end(reason)

    def on_failure(self, error: Exception) -> None:
        self.end(f"internal error: {error}", ErrorCode.INTERNAL_ERROR)

    # Ends

    def end(self, error: str, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Let go of the stream. Idempotent."""
        if self._over:
            return
        self._over = True
        self._early.clear()
        if self._tunnel is not None:
            if not self._rest and code is ErrorCode.NO_ERROR:
                self._tunnel.end_stream(self.stream_id)
            self._tunnel.reset(self.stream_id, code)
            self._tunnel = None
        self._pod.over(self, error)

    def abort(self, reason: str) -> None:
        """End it now, as a relay is aborted."""
        self.end(reason, ErrorCode.CANCEL)

    def drain(self) -> None:
        """A flow has no end of its own: it goes at once."""
        self.end("")
