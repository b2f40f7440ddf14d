# SPDX-License-Identifier: Apache-2.0
"""An HBONE connection: one verified TLS session, one HTTP/2 state, many streams.

            drain(), GOAWAY, expired      no stream left:           peer's FIN or
            certificate, maximum age      GOAWAY, FIN sent          LINGER_TIMEOUT_S
      ┌──────┐                  ┌──────────┐              ┌─────────────┐        ┌────────┐
      │ OPEN │ ────────────────▶│ DRAINING │ ────────────▶│ HALF_CLOSED │ ──────▶│ CLOSED │
      └──────┘                  └──────────┘              └─────────────┘        └────────┘
          │  close(): I/O error, no PONG, │ protocol error, root │ removed            ▲
          └───────────────────────────────┴──────────────────────┴────────────────────┘
                                  (open streams are reset)

OPEN accepts new streams; DRAINING finishes the open ones. In both states the tunnel may be blocked
(`WriteCoalescer.blocked`): the socket does not accept more ciphertext. A blocked tunnel accepts no
payload, and streams that want to send wait in turn.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

import structlog
from OpenSSL import SSL

from ztunnel.hbone.buffer_budget import BufferShare
from ztunnel.hbone.connection import Role
from ztunnel.hbone.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAway,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamEnded,
    StreamReset,
    WindowOpened,
)
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import NEVER, READ, WRITE, EventLoop
from ztunnel.proxy.tls import credentials
from ztunnel.proxy.tls.session import RECORD_BYTES
from ztunnel.proxy.tunnel import keepalive
from ztunnel.proxy.tunnel.interfaces import Session, TunnelStream
from ztunnel.proxy.tunnel.keepalive import PING_PAYLOAD, Keepalive
from ztunnel.proxy.tunnel.state import CLOSED, DRAINING, HALF_CLOSED, OPEN
from ztunnel.proxy.tunnel.tunnel_streams import TunnelStreams

EARLY_DATA_BYTES = RECORD_BYTES  # of an application, sent together with its CONNECT
MAX_CONTROL_BYTES = 64 * 1024  # unsent control frames at which reading from the peer stops
MAX_INBOUND_AGE_S = 3600.0  # then the peer must authenticate again; open streams continue
GOAWAY_GRACE_S = 1.0  # for streams that the peer opened before it learns of the drain
LINGER_TIMEOUT_S = 2.0  # how long a half-closed tunnel waits for the peer's FIN

log = structlog.get_logger()


class TunnelOwner(Protocol):
    """Receives the events of a tunnel that do not belong to an attached stream."""

    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None: ...

    def on_capacity(self, tunnel: Tunnel) -> None:
        """A stream ended or the peer's limits changed: `can_open` may differ."""

    def on_closed(self, tunnel: Tunnel, reason: str) -> None: ...


class Tunnel(TunnelStreams):
    """Owns its session, whose handshake is complete and whose socket the loop watches for READ."""

    def __init__(
        self,
        loop: EventLoop,
        buffers: BufferPool,
        session: Session,
        role: Role,
        *,
        peer: str,
        owner: TunnelOwner,
        share: BufferShare,
    ) -> None:
        """`peer` is the SPIFFE ID that the peer's certificate proved. `share`: the pod's."""
        super().__init__(loop, buffers, session, role, share)
        self.peer = peer
        self.early_data_follows = False  # for `on_request`: data of the stream is the next event
        self._buffers = buffers
        self._session = session
        self._sock = session.sock
        self._owner = owner
        self._mask = READ
        self._drain_at = loop.now + MAX_INBOUND_AGE_S if role is Role.SERVER else NEVER
        self._keepalive = Keepalive(loop.now, is_server=role is Role.SERVER)
        loop.rebind(self._sock.fileno(), self)
        self._timer = loop.call_later(keepalive.PING_INTERVAL_S, self._check_alive)
        self._writer.schedule_flush()
        loop.defer(self._read_first)

    def _stream_released(self) -> None:
        if self.connection.has_output:
            self._writer.schedule_flush()
        if self.state is not OPEN and not self.streams:
            self._loop.defer(self._half_close)
        else:
            self._owner.on_capacity(self)

    # Sending

    def flush(self) -> None:
        """Hand the collected frames to TLS. Afterwards the buffer is free or the tunnel blocked."""
        self._writer.flush_scheduled = False
        if self.state is CLOSED or self.state is HALF_CLOSED:
            return
        try:
            done = self._writer.write_out()
        except OSError as error:
            self.close(f"write: {error.strerror or error}")
            return
        if not done:
            self._block()
        elif self._writer.blocked:
            self._unblock()

    def _block(self) -> None:
        self._writer.blocked = True
        self._watch(READ | WRITE)
        self._apply_backpressure()

    def _unblock(self) -> None:
        self._writer.blocked = False
        self._watch(READ)
        for _ in range(len(self._queue)):
            if self._writer.blocked or self.state is CLOSED:
                return
            stream = self._queue.pop_blocked()
            if stream is not None:
                self._notify(stream, stream.pump)
        if self.state is DRAINING and not self.streams:
            self._loop.defer(self._half_close)

    def _apply_backpressure(self) -> None:
        """Stop reading from a peer that does not read control frames."""
        if self._writer.blocked and self._writer.queued_control_bytes() > MAX_CONTROL_BYTES:
            self._watch(WRITE)

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._loop.modify(self._sock.fileno(), mask)

    # Receiving

    def on_ready(self, mask: int) -> None:
        if self.state is CLOSED:
            return
        if self.state is HALF_CLOSED:
            self._discard_input()
            return
        if self._writer.blocked:
            self.flush()
        if mask & ~WRITE and self.state is not CLOSED:
            self._read()

    def on_failure(self, error: Exception) -> None:
        self.close(f"internal error: {error}")

    def _read_first(self) -> None:
        """Read what arrived together with the end of the handshake: no event announces it."""
        if self.state is not CLOSED and self.state is not HALF_CLOSED:
            self._read()

    def _read(self) -> None:
        """Read up to one buffer and process it."""
        scratch, session = self._buffers.scratch, self._session
        filled = session.read_into(scratch)
        if filled:
            self._keepalive.last_read_at = self._loop.now
            self._dispatch(self.connection.receive(scratch.view[:filled], self._loop.now))
        if session.end_reason:
            self.close(session.end_reason)
        elif session.pending and not self._writer.blocked and self.state is not CLOSED:
            self._block()

    def _dispatch(self, events: list[Event]) -> None:
        streams = self.streams
        if events:
            self._keepalive.last_event_at = self._loop.now
        for number, event in enumerate(events):
            if type(event) is DataReceived:
                stream = streams.get(event.stream_id)
                if stream is None:
                    self.connection.consumed(event.stream_id, len(event.payload))
                else:
                    self._notify(stream, stream.on_data, event.payload)
            else:
                if type(event) is RequestReceived:
                    self.early_data_follows = _is_early_data(events, number + 1, event.stream_id)
                self._dispatch_control(event)
            if self.state is CLOSED:
                return
        if self.connection.has_output:
            self._writer.schedule_flush()
            self._apply_backpressure()

    def _dispatch_control(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._owner.on_request(self, event)
            case ResponseReceived(stream_id, status, headers):
                if stream := self.streams.get(stream_id):
                    self._notify(stream, stream.on_response, status, headers)
            case StreamEnded(stream_id):
                if stream := self.streams.get(stream_id):
                    self._notify(stream, stream.on_end)
            case StreamReset(stream_id, code):
                if stream := self.streams.get(stream_id):
                    self._notify(stream, stream.on_reset, f"stream reset, code {code}")
                    self.release(stream_id)
            case WindowOpened(stream_id):
                for stream in self._queue.pop_no_window(stream_id):
                    self._notify(stream, stream.pump)
            case GoAway():
                self._start_draining()
                self._owner.on_capacity(self)
            case SettingsReceived():
                self._owner.on_capacity(self)
            case ConnectionFailed(code, reason):
                self.flush()
                self.close(f"{code.name}: {reason}")

    def _notify(self, stream: TunnelStream, event: Callable[..., None], *args: object) -> None:
        """Call a method of a stream; an exception ends that stream only."""
        try:
            event(*args)
        except Exception as error:
            log.error("stream failed", peer=self.peer, exc_info=error)
            stream.on_failure(error)

    # Closing

    @property
    def resumable(self) -> tuple[SSL.Context, SSL.Session] | None:
        """Client: the TLS session that a later tunnel may resume; None before the first ticket."""
        session = self._session.resumable
        return (self._session.context, session) if session else None

    def drain(self) -> None:
        """Accept no new streams; close when the open ones have ended."""
        if self.state is OPEN:
            self.connection.goaway()
            self._writer.schedule_flush()
            self._start_draining()

    def close_if_untrusted(self, own: credentials.Credentials) -> None:
        """Close if these credentials do not trust the peer's certificate, for example without its
        former root."""
        if self.state is not CLOSED and not own.trusts(self._session):
            self.close("the root of the peer's certificate has been removed")

    def close(self, reason: str) -> None:
        """Close now; open streams are reset."""
        if self.state is CLOSED:
            return
        can_write = not self._writer.blocked and self.state is not HALF_CLOSED
        self.state = CLOSED
        self._timer.cancel()
        self._writer.cancel_delay()
        if can_write:
            self._writer.send_delayed()
            self._session.send_close_notify()
        self._loop.close(self._sock)
        self._writer.close()
        self._session.discard()
        self.connection.release_memory()
        for stream in list(self.streams.values()):
            self._notify(stream, stream.on_reset, f"tunnel lost: {reason}")
        self.streams.clear()
        self._owner.on_closed(self, reason)

    def _start_draining(self) -> None:
        if self.state is OPEN:
            self.state = DRAINING
        if not self.streams:
            self._loop.defer(self._half_close)

    def _half_close(self) -> None:
        """Send FIN once the drained tunnel is empty, and wait for the peer's FIN.

        Closing a socket with unread octets sends RST, which can overtake the last sent octets.
        """
        if self.streams or self.state is not DRAINING:
            return
        self.flush()
        if self._writer.blocked or self.state is not DRAINING:
            return  # `_unblock` schedules this again
        self.state = HALF_CLOSED
        self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_TIMEOUT_S, self._close_drained)
        self._session.send_close_notify()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close_drained()

    def _discard_input(self) -> None:
        """Read and drop what the peer sends after this side's FIN."""
        try:
            while self._sock.recv_into(self._buffers.scratch.view):
                pass
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close_drained()

    def _close_drained(self) -> None:
        self.close("drained")

    def _check_alive(self) -> None:
        now = self._loop.now
        reason = self._keepalive.timeout(now, is_idle=not self.streams)
        if reason:
            self.close(reason)
            return
        if self.state is OPEN and credentials.is_expired(self._session.peer_certificate):
            self.drain()  # a peer that is still valid has a new certificate by now
        elif self.state is OPEN and now >= self._drain_at:
            self._drain_at = NEVER
            self.connection.announce_goaway()
            self._writer.schedule_flush()
            self._loop.call_later(GOAWAY_GRACE_S, self.drain)
        if self._keepalive.ping_due(now):
            self.connection.ping(PING_PAYLOAD)
            self._writer.schedule_flush()
        self._timer = self._loop.call_later(keepalive.PING_INTERVAL_S, self._check_alive)


def _is_early_data(events: list[Event], at: int, stream_id: int) -> bool:
    """Whether the event at this index is data of the stream, too short for more to be likely."""
    if at >= len(events):
        return False
    event = events[at]
    return (
        isinstance(event, DataReceived)
        and event.stream_id == stream_id
        and len(event.payload) < EARLY_DATA_BYTES
    )
