# SPDX-License-Identifier: Apache-2.0
"""An HBONE connection: one verified TLS session, one HTTP/2 state, many streams.

                drain(), GOAWAY or        no stream left:           peer's FIN or
                expired certificate       GOAWAY, FIN sent          LINGER_TIMEOUT_S
      ┌──────┐                  ┌──────────┐              ┌─────────────┐        ┌────────┐
      │ OPEN │ ────────────────▶│ DRAINING │ ────────────▶│ HALF_CLOSED │ ──────▶│ CLOSED │
      └──────┘                  └──────────┘              └─────────────┘        └────────┘
          │  close(): I/O error, no PONG, │  protocol error      │                    ▲
          └───────────────────────────────┴──────────────────────┴────────────────────┘
                                  (open streams are reset)

OPEN accepts new streams; DRAINING finishes the open ones. In both states the tunnel may be blocked
(`WriteCoalescer.blocked`): the socket does not accept more ciphertext. A blocked tunnel accepts no
payload, and streams that want to send wait in turn.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final, Protocol

import structlog
from OpenSSL import SSL

from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAway,
    Header,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamEnded,
    StreamReset,
    WindowOpened,
)
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import READ, WRITE, EventLoop
from ztunnel.proxy.tls import credentials
from ztunnel.proxy.tls.session import RECORD_BYTES
from ztunnel.proxy.tunnel import keepalive
from ztunnel.proxy.tunnel.interfaces import Session, TunnelStream
from ztunnel.proxy.tunnel.keepalive import PING_PAYLOAD, Keepalive
from ztunnel.proxy.tunnel.send_queue import SendQueue
from ztunnel.proxy.tunnel.write_coalescer import WriteCoalescer

EARLY_DATA_BYTES = RECORD_BYTES  # of an application, sent together with its CONNECT
MAX_CONTROL_BYTES = 64 * 1024  # unsent control frames at which reading from the peer stops
LINGER_TIMEOUT_S = 2.0  # how long a half-closed tunnel waits for the peer's FIN

log = structlog.get_logger()


class TunnelState(Enum):
    """See the diagram in the module's docstring."""

    OPEN = auto()
    DRAINING = auto()
    HALF_CLOSED = auto()
    CLOSED = auto()


# In compiled code a Final is a C variable; looking up a member of an Enum is a dict access.
# The type is not a literal, so that mypy does not assume that `state` is the same after a call.
_OPEN: Final[TunnelState] = TunnelState.OPEN
_DRAINING: Final[TunnelState] = TunnelState.DRAINING
_HALF_CLOSED: Final[TunnelState] = TunnelState.HALF_CLOSED
_CLOSED: Final[TunnelState] = TunnelState.CLOSED


class TunnelOwner(Protocol):
    """Receives the events of a tunnel that do not belong to an attached stream."""

    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None: ...

    def on_capacity(self, tunnel: Tunnel) -> None:
        """A stream ended or the peer's limits changed: `can_open` may differ."""

    def on_closed(self, tunnel: Tunnel, reason: str) -> None: ...


class Tunnel:
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
    ) -> None:
        """`peer` is the SPIFFE ID that the peer's certificate proved."""
        self.peer = peer
        self.connection = Connection(role, extended_connect=role is Role.SERVER)
        self.streams: dict[int, TunnelStream] = {}
        self.state = _OPEN
        self.last_used_at = loop.now
        self.stream_count = 0  # since the tunnel was opened
        self.early_data_follows = False  # for `on_request`: data of the stream is the next event
        self._loop = loop
        self._buffers = buffers
        self._session = session
        self._sock = session.sock
        self._owner = owner
        self._writer = WriteCoalescer(loop, buffers, self.connection, session, self.flush)
        self._queue = SendQueue()
        self._mask = READ
        self._keepalive = Keepalive(loop.now, is_server=role is Role.SERVER)
        loop.rebind(self._sock.fileno(), self)
        self._timer = loop.call_later(keepalive.PING_INTERVAL_S, self._check_alive)
        self._writer.schedule_flush()
        loop.defer(self._read_first)

    # Streams

    @property
    def can_open(self) -> bool:
        """Whether `open` may be called now."""
        return self.state is _OPEN and self.connection.can_open_stream

    def open(self, headers: Iterable[Header], stream: TunnelStream, head: bytes = b"") -> int:
        """Client: send a request, `head` followed by `headers`. `stream` receives its events."""
        stream_id = self.connection.request(headers, head=head)
        self.attach(stream_id, stream)
        self._writer.schedule_flush()
        return stream_id

    def attach(self, stream_id: int, stream: TunnelStream) -> None:
        """Deliver the events of `stream_id` to `stream` from now on."""
        if stream_id not in self.streams:
            self.stream_count += 1
            self._writer.on_stream_opened()
        self.streams[stream_id] = stream

    def respond(
        self, stream_id: int, status: int, headers: Iterable[Header], *, may_wait: bool = False
    ) -> None:
        """Server: send the response; the stream stays open.

        `may_wait`: the application already has a request, so its reply is likely to follow soon.
        """
        is_alone = self._writer.is_empty
        self.connection.respond(stream_id, status, headers)
        self._writer.schedule_control(may_wait=may_wait and is_alone)

    def refuse(self, stream_id: int, status: int) -> None:
        """Server: send an error status and release the stream."""
        self.connection.respond(stream_id, status, end_stream=True)
        self.connection.reset(stream_id, ErrorCode.NO_ERROR)
        self.release(stream_id)

    def end_stream(self, stream_id: int) -> None:
        """Send END_STREAM; on a busy tunnel it may share a record with the next stream's frames."""
        may_wait = self._writer.is_empty and self._writer.is_busy
        self.connection.end_stream(stream_id)
        self._writer.schedule_control(may_wait=may_wait)

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """Send RST_STREAM and release the stream; no event follows."""
        self.connection.reset(stream_id, code)
        self.release(stream_id)

    def consumed(self, stream_id: int, count: int) -> None:
        """`count` payload bytes were delivered: the peer gets credit for them."""
        self.connection.consumed(stream_id, count)
        if self.connection.has_output:
            self._writer.schedule_flush()

    def hold(self, count: int) -> None:
        """`count` payload bytes wait for a slow application; only their stream must wait."""
        self.connection.hold(count)
        if self.connection.has_output:
            self._writer.schedule_flush()

    def consumed_held(self, stream_id: int, count: int) -> None:
        """`count` held bytes were delivered."""
        self.connection.consumed_held(stream_id, count)
        if self.connection.has_output:
            self._writer.schedule_flush()

    def release(self, stream_id: int) -> None:
        """The stream ended: detach its object."""
        self._queue.remove(stream_id, self.streams.pop(stream_id, None))
        self.last_used_at = self._loop.now
        if self.state is _CLOSED:
            return
        if self.connection.has_output:
            self._writer.schedule_flush()
        if self.state is not _OPEN and not self.streams:
            self._loop.defer(self._half_close)
        else:
            self._owner.on_capacity(self)

    # Sending

    def claim(self, stream: TunnelStream) -> memoryview | None:
        """Room to read the next payload into, never empty; `commit` or `abandon` must follow.

        None when there is none: `stream.pump` is called when that changes.
        """
        window = self.connection.sendable(stream.stream_id)
        if window <= 0:
            self._queue.add_no_window(stream)
            return None
        room = None if self._writer.blocked else self._writer.reserve(window)
        if room is None:
            self._queue.add_blocked(stream)
        return room

    def commit(self, stream_id: int, length: int) -> None:
        """The claimed room holds `length` ≥ 1 bytes: the stream's next DATA frame."""
        self._writer.commit(stream_id, length)

    def abandon(self) -> None:
        """The claimed room stays unused."""
        self._writer.abandon()

    def flush(self) -> None:
        """Hand the collected frames to TLS. Afterwards the buffer is free or the tunnel blocked."""
        self._writer.flush_scheduled = False
        if self.state is _CLOSED or self.state is _HALF_CLOSED:
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
            if self._writer.blocked or self.state is _CLOSED:
                return
            stream = self._queue.pop_blocked()
            if stream is not None:
                self._notify(stream, stream.pump)
        if self.state is _DRAINING and not self.streams:
            self._loop.defer(self._half_close)

    def _apply_backpressure(self) -> None:
        """Stop reading from a peer that does not read our responses."""
        if self._writer.blocked and self._writer.queued_control_bytes() > MAX_CONTROL_BYTES:
            self._watch(WRITE)

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._loop.modify(self._sock.fileno(), mask)

    # Receiving

    def on_ready(self, mask: int) -> None:
        if self.state is _CLOSED:
            return
        if self.state is _HALF_CLOSED:
            self._discard_input()
            return
        if self._writer.blocked:
            self.flush()
        if mask & ~WRITE and self.state is not _CLOSED:
            self._read()

    def on_failure(self, error: Exception) -> None:
        self.close(f"internal error: {error}")

    def _read_first(self) -> None:
        """Read what arrived together with the end of the handshake: no event announces it."""
        if self.state is not _CLOSED and self.state is not _HALF_CLOSED:
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
        elif session.pending and not self._writer.blocked and self.state is not _CLOSED:
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
            if self.state is _CLOSED:
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
        if self.state is _OPEN:
            self.connection.goaway()
            self._writer.schedule_flush()
            self._start_draining()

    def close(self, reason: str) -> None:
        """Close now; open streams are reset."""
        if self.state is _CLOSED:
            return
        can_write = not self._writer.blocked and self.state is not _HALF_CLOSED
        self.state = _CLOSED
        self._timer.cancel()
        self._writer.cancel_delay()
        if can_write:
            self._writer.send_delayed()
            self._session.send_close_notify()
        self._loop.close(self._sock)
        self._writer.close()
        self._session.discard()
        for stream in list(self.streams.values()):
            self._notify(stream, stream.on_reset, f"tunnel lost: {reason}")
        self.streams.clear()
        self._owner.on_closed(self, reason)

    def _start_draining(self) -> None:
        if self.state is _OPEN:
            self.state = _DRAINING
        if not self.streams:
            self._loop.defer(self._half_close)

    def _half_close(self) -> None:
        """Send FIN once the drained tunnel is empty, and wait for the peer's FIN.

        Closing a socket with unread octets sends RST, which can overtake the last of our octets.
        """
        if self.streams or self.state is not _DRAINING:
            return
        self.flush()
        if self._writer.blocked or self.state is not _DRAINING:
            return  # `_unblock` schedules this again
        self.state = _HALF_CLOSED
        self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_TIMEOUT_S, self._close_drained)
        self._session.send_close_notify()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close_drained()

    def _discard_input(self) -> None:
        """Read and drop what the peer sends after our FIN."""
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
        if self.state is _OPEN and credentials.is_expired(self._session.peer_certificate):
            self.drain()  # a peer that is still valid has a new certificate by now
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
