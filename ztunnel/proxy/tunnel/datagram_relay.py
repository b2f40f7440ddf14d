# SPDX-License-Identifier: Apache-2.0
"""One UDP flow: the datagrams between an application's port and a remote address, on one stream.

    outbound: AWAITING_TUNNEL ─▶ OPEN (CONNECT sent, datagrams may follow) ─▶ CLOSED
    inbound:                     OPEN (200 sent)                           ─▶ CLOSED

A datagram that the tunnel does not accept now is dropped and counted, as a router would do. Only a
datagram that was sent in part is completed later.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from ztunnel.hbone.capsule import CapsuleReader, datagram_header
from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Header
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.conntrack.record import Record
from ztunnel.proxy.tunnel.state import TunnelState
from ztunnel.proxy.tunnel.tunnel import Tunnel
from ztunnel.proxy.tunnel.udp_token_address import Address, TokenCodec

MAX_EARLY_DATAGRAMS = 16  # that wait until the tunnel is established
MAX_EARLY_BYTES = 256 * 1024  # of all of them: a message of the agent link holds 1 MiB
CAPSULE_PROTOCOL = (b"capsule-protocol", b"?1")  # RFC 9297 3.4

FlowKey = tuple[int, int, bytes]  # IP family, the application's port, token of the remote (4 bytes)


class FlowState(Enum):
    AWAITING_TUNNEL = auto()
    OPEN = auto()
    CLOSED = auto()


class FlowOwner(Protocol):
    """The pod's UDP, see `ztunnel.proxy.handlers.udp.PodUdp`."""

    def deliver(self, flow: UdpFlow, payload: memoryview) -> None:
        """Send a datagram to the application."""

    def datagram_dropped(self, flow: UdpFlow) -> None:
        """A datagram was dropped for lack of buffer space."""

    def flow_closed(self, flow: UdpFlow, error: str) -> None:
        """The flow has released its stream."""


class UdpFlow:
    """A flow and its stream. `app` is the current address of the application's socket."""

    def __init__(self, owner: FlowOwner, codec: TokenCodec, key: FlowKey, record: Record) -> None:
        self.stream_id = 0
        self.key = key
        self.codec = codec
        self.record = record
        self.inbound = False
        self.set_app((codec.pod_ip, key[1]), connected=False)
        self.dropped = 0
        self.remote: SocketAddress | None = None  # the application's destination, if it began
        self.on_closed: Callable[[str], None] | None = None  # called instead of the tracker
        self._owner = owner
        self._state = FlowState.AWAITING_TUNNEL
        self._tunnel: Tunnel | None = None
        self._reader = CapsuleReader()
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._unsent = b""  # the rest of a datagram that was sent in part

    @property
    def is_stale(self) -> bool:
        """Whether the tunnel drains. A flow does not end by itself, so it moves to a new tunnel."""
        if self.inbound or self._tunnel is None:
            return False
        return self._tunnel.state is not TunnelState.OPEN

    @property
    def is_closed(self) -> bool:
        return self._state is FlowState.CLOSED

    def set_app(self, app: Address, *, connected: bool) -> None:
        """Set the application's address, and whether its socket is connected (`TokenCodec6`)."""
        self.app = app
        self.connected = connected
        self.control = self.codec.control(self.key[2], connected=connected)

    # The stream

    def open(self, tunnel: Tunnel, headers: list[Header]) -> None:
        """Send the request, and the early datagrams without waiting (allowed by RFC 9298 3.5)."""
        self._tunnel = tunnel
        self._state = FlowState.OPEN
        self.stream_id = tunnel.open(headers, self)
        for payload in self.pop_early():
            self._write(memoryview(payload))

    def pop_early(self) -> tuple[bytes, ...]:
        """Remove and return the datagrams that wait for the tunnel."""
        early, self._early = tuple(self._early), []
        return early

    def serve(self, tunnel: Tunnel, stream_id: int) -> None:
        """Attach to the stream of a peer's request."""
        self.inbound = True
        self._state = FlowState.OPEN
        self._tunnel, self.stream_id = tunnel, stream_id
        tunnel.attach(stream_id, self)

    # From the application

    def send(self, payload: memoryview) -> None:
        """Send a datagram of the application, or drop it."""
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
        tunnel, header = self._tunnel, datagram_header(len(payload))
        assert tunnel is not None
        total = len(header) + len(payload)
        if self._unsent or tunnel.connection.window(self.stream_id) < total:
            self._drop()
            return
        room = tunnel.claim(self)
        if room is None:
            self._drop()
            return
        if len(room) >= total:
            room[: len(header)] = header
            room[len(header) : total] = payload
            tunnel.commit(self.stream_id, total)
        else:
            tunnel.abandon()
            self._unsent = header + bytes(payload)
            self.pump()
        self.record.sent += len(payload)

    def pump(self) -> None:
        """Send the rest of a datagram that was sent in part."""
        while self._unsent and self._tunnel is not None:
            room = self._tunnel.claim(self)
            if room is None:
                return
            count = min(len(room), len(self._unsent))
            room[:count] = self._unsent[:count]
            self._unsent = self._unsent[count:]
            self._tunnel.commit(self.stream_id, count)

    def _drop(self) -> None:
        self.dropped += 1
        self._owner.datagram_dropped(self)

    # From the tunnel

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None:
        if not 200 <= status <= 299:
            self.close(f"the destination's proxy answered {status}")
        else:
            self.record.established = True

    def on_data(self, payload: memoryview) -> None:
        tunnel = self._tunnel
        for datagram in self._reader.feed(payload):
            self.record.received += len(datagram)
            self._owner.deliver(self, datagram)
        if tunnel is not None:
            tunnel.consumed(self.stream_id, len(payload))
        if self._reader.error:
            self.close(self._reader.error, ErrorCode.PROTOCOL_ERROR)

    def on_end(self) -> None:
        self.close("")

    def on_reset(self, reason: str) -> None:
        self._tunnel = None  # the stream does not exist any more
        self.close(reason)

    def on_failure(self, error: Exception) -> None:
        self.close(f"internal error: {error}", ErrorCode.INTERNAL_ERROR)

    # Closing

    def close(self, error: str, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Release the stream. Idempotent."""
        if self._state is FlowState.CLOSED:
            return
        self._state = FlowState.CLOSED
        self._early.clear()
        if self._tunnel is not None:
            if not self._unsent and code is ErrorCode.NO_ERROR:
                self._tunnel.end_stream(self.stream_id)
            self._tunnel.reset(self.stream_id, code)
            self._tunnel = None
        self._owner.flow_closed(self, error)

    def abort(self, reason: str) -> None:
        """Close with an error."""
        self.close(reason, ErrorCode.CANCEL)

    def drain(self) -> None:
        """A flow does not end by itself: close it now."""
        self.close("")
