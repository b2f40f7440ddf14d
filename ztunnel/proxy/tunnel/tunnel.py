# SPDX-License-Identifier: Apache-2.0
"""An HBONE connection: one verified TLS socket, one HTTP/2 state, many streams.

Outgoing bytes are gathered in one buffer per tunnel and handed to TLS at the end of the turn, so
that many small streams share one record. While the socket can't take all of what TLS made of it,
the tunnel is blocked: nobody reads for it, and streams wait in a queue for their turn.

    OPEN → (retire: no new streams) → last stream over: FIN sent, peer's awaited → CLOSED
         → (lost, or closed: streams are reset)                                  → CLOSED
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog
from cryptography import x509
from OpenSSL import SSL

from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.constants import FRAME_HEADER, PING_INTERVAL, PING_TIMEOUT
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
from ztunnel.proxy.io.buffers import BUFFER_SIZE, Buffer, BufferPool
from ztunnel.proxy.io.event_loop import READ, WRITE, Loop, Timer
from ztunnel.proxy.tls import credentials
from ztunnel.proxy.tls.session import RECORD

FIRST_WORDS = RECORD  # bytes of an app that go with its request
SMALLEST_READ = 16 * 1024  # rather flush first than read less than this for lack of room
MAX_CONTROL = 64 * 1024  # bytes of unsent control frames at which we stop listening to the peer
LINGER = 2.0  # seconds a retired tunnel waits for the peer's end
# Seconds that an answer or an end may wait for other frames to go with, where that hurts nobody
# (`Tunnel.respond`, `Tunnel.end`): epoll waits in milliseconds. A record less is a system call and
# two less here, and as many at the peer, which need not wake.
COMPANY = 0.001
BUSY = 0.002  # streams that open within so many seconds of each other make it likely
IDLE_WITHOUT_PROGRESS = PING_INTERVAL + PING_TIMEOUT  # for a server connection without a stream

log = structlog.get_logger()


class Session(Protocol):
    """What carries a tunnel: a `TlsSession`."""

    sock: socket.socket
    context: SSL.Context
    end: str

    @property
    def pending(self) -> bool: ...

    @property
    def resumed(self) -> bool: ...

    @property
    def resumable(self) -> SSL.Session | None: ...

    @property
    def peer_certificate(self) -> x509.Certificate: ...

    def read_into(self, buffer: Buffer) -> int: ...

    def write(self, buffer: Buffer, length: int) -> bool: ...

    def flush(self) -> bool: ...

    def say_goodbye(self) -> None: ...

    def discard(self) -> None: ...


class TunnelStream(Protocol):
    """What holds one stream of a tunnel."""

    stream_id: int

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None: ...

    def on_data(self, payload: memoryview) -> None:
        """Take the payload now; owe `Tunnel.consumed`, or `hold` and later `consumed_held`."""

    def on_end(self) -> None: ...

    def on_reset(self, reason: str) -> None:
        """The stream is gone: by the peer, by a protocol error, or with its tunnel."""

    def pump(self) -> None:
        """There may be room to send again."""

    def on_failure(self, error: Exception) -> None:
        """A method above raised: reset the stream and what it serves."""


class TunnelOwner(Protocol):
    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None: ...

    def on_capacity(self, tunnel: Tunnel) -> None:
        """A stream ended or the peer's limits changed: `can_open` may differ."""

    def on_closed(self, tunnel: Tunnel, reason: str) -> None: ...


class Tunnel:
    """An open tunnel; takes over a session, handshake done, whose socket is watched for READ."""

    def __init__(
        self,
        loop: Loop,
        buffers: BufferPool,
        session: Session,
        role: Role,
        *,
        peer: str,
        owner: TunnelOwner,
    ) -> None:
        self.peer = peer  # SPIFFE id, proven
        self.connection = Connection(role, extended_connect=role is Role.SERVER)
        self.streams: dict[int, TunnelStream] = {}
        self.closed = False
        self.retired = False
        self.opened_at = self.last_used = loop.now
        self.served = 0  # streams so far
        self._role = role
        self._loop = loop
        self._buffers = buffers
        self._session = session
        self._sock = session.sock
        self._owner = owner
        self._out: Buffer | None = None
        self._filled = 0  # bytes of `_out` to send
        self._backlog = b""  # control frames that `_out` had no room for
        self._blocked = False
        self._flush_due = False
        self._company: Timer | None = None  # runs while frames wait for others to go with
        self._stream_at = -BUSY  # when the latest stream began, and how long after the one before
        self._stream_gap = BUSY
        self.words_follow = False  # the request being told of has the app's first words behind it
        self._lingers = False  # our FIN is sent, the peer's is awaited
        self._mask = READ
        self._turns: deque[TunnelStream] = deque()  # waiting for the blocked write
        self._waiting: set[TunnelStream] = set()  # the same ones
        self._starved: dict[int, TunnelStream] = {}  # waiting for window
        self._heard = self._progress = loop.now
        self._pinged = False
        loop.rebind(self._sock.fileno(), self)
        self._keepalive = loop.call_later(PING_INTERVAL, self._check_alive)
        self.wake()
        loop.defer(self._read_first)

    # Streams

    @property
    def can_open(self) -> bool:
        """Whether `open` may be called now."""
        return not self.closed and not self.retired and self.connection.can_open_stream

    def open(self, headers: Iterable[Header], stream: TunnelStream, head: bytes = b"") -> int:
        """Client: send a request, `head` and then `headers`; its outcome goes to `stream`."""
        stream_id = self.connection.request(headers, head=head)
        self.attach(stream_id, stream)
        self.wake()
        return stream_id

    def attach(self, stream_id: int, stream: TunnelStream) -> None:
        """Let `stream` have the events of `stream_id` from now on."""
        if stream_id not in self.streams:
            self.served += 1
            now = self._loop.now
            self._stream_gap, self._stream_at = now - self._stream_at, now
        self.streams[stream_id] = stream

    def respond(
        self, stream_id: int, status: int, headers: Iterable[Header], *, may_wait: bool = False
    ) -> None:
        """Server: accept the stream with `status` 200, bytes follow.

        `may_wait`: the app has been asked something already, and its answer is likely to be near.
        """
        is_alone = not (self._flush_due or self.connection.has_output)
        self.connection.respond(stream_id, status, headers)
        self._wake_for_control(may_wait=may_wait and is_alone)

    def refuse(self, stream_id: int, status: int) -> None:
        """Server: answer with an error status and let go of the stream."""
        self.connection.respond(stream_id, status, end_stream=True)
        self.connection.reset(stream_id, ErrorCode.NO_ERROR)
        self.release(stream_id)

    def end(self, stream_id: int) -> None:
        """Close our half of the stream; while new streams come quickly, with one of them."""
        is_alone = not (self._flush_due or self.connection.has_output)
        is_busy = self._stream_gap < BUSY and self._loop.now - self._stream_at < BUSY
        self.connection.end_stream(stream_id)
        self._wake_for_control(may_wait=is_busy and is_alone)

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """End the stream both ways at once; no event follows."""
        self.connection.reset(stream_id, code)
        self.release(stream_id)

    def consumed(self, stream_id: int, count: int) -> None:
        """These payload bytes have left our hands: the peer may send as many again."""
        self.connection.consumed(stream_id, count)
        if self.connection.has_output:
            self.wake()

    def hold(self, count: int) -> None:
        """These payload bytes wait for a slow application; other streams go on."""
        self.connection.hold(count)
        if self.connection.has_output:
            self.wake()

    def consumed_held(self, stream_id: int, count: int) -> None:
        """These held bytes have left our hands."""
        self.connection.consumed_held(stream_id, count)
        if self.connection.has_output:
            self.wake()

    def release(self, stream_id: int) -> None:
        """The stream is over: forget who held it."""
        stream = self.streams.pop(stream_id, None)
        self._starved.pop(stream_id, None)
        if stream is not None:
            self._waiting.discard(stream)
        self.last_used = self._loop.now
        if self.closed:
            return
        if self.connection.has_output:
            self.wake()
        if self.retired and not self.streams:
            self._loop.defer(self._close_retired)
        else:
            self._owner.on_capacity(self)

    # Sending

    def claim(self, stream: TunnelStream) -> memoryview | None:
        """Room to read the next payload into, never empty; `commit` or `abandon` must follow.

        None when there is none: `stream.pump` is called when that changes.
        """
        room = self.connection.sendable(stream.stream_id)
        if room <= 0:
            self._starved[stream.stream_id] = stream
            return None
        if self._blocked or not self._make_room(room):
            self._await_turn(stream)
            return None
        out = self._out or self._take_buffer()
        start = self._filled + FRAME_HEADER
        return out.view[start : min(start + room, BUFFER_SIZE)]

    def commit(self, stream_id: int, length: int) -> None:
        """The claimed room holds `length` ≥ 1 bytes: they are the stream's next DATA frame."""
        assert self._out is not None
        self.connection.write_data_header_into(self._out.data, self._filled, stream_id, length)
        self._filled += FRAME_HEADER + length
        self.wake()

    def abandon(self) -> None:
        """Nothing came into the claimed room."""
        if not self._filled:
            self._give_buffer()

    def wake(self) -> None:
        """Flush at the end of this turn."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.at_end_of_turn(self.flush)

    def _wake_for_control(self, *, may_wait: bool) -> None:
        """Send the control frames there are, with what comes within COMPANY if they may wait."""
        if not may_wait:
            self.wake()
            return
        self._backlog += self.connection.take_output()
        if self._company is None:
            self._company = self._loop.call_later(COMPANY, self._without_company)

    def _without_company(self) -> None:
        self._company = None
        if self._backlog:
            self.wake()

    def _send_waiting(self) -> None:
        """An end that waits for company belongs to a stream that ended in order."""
        if self._backlog:
            with contextlib.suppress(OSError):
                self._write_out()

    def flush(self) -> None:
        """Give TLS what is gathered. Afterwards the buffer is free, or the tunnel blocked."""
        self._flush_due = False
        if self.closed or self._lingers:
            return
        try:
            done = self._write_out()
        except OSError as error:
            self.close(f"write: {error.strerror or error}")
            return
        if not done:
            self._block()
        elif self._blocked:
            self._unblock()

    # Ends

    @property
    def resumable(self) -> tuple[SSL.Context, SSL.Session] | None:
        """Client: what a later tunnel may resume; None before the peer's ticket has come."""
        session = self._session.resumable
        return (self._session.context, session) if session else None

    def retire(self) -> None:
        """No new streams; those that are open go on."""
        if self.retired or self.closed:
            return
        self.retired = True
        self.connection.goaway()
        self.wake()
        if not self.streams:
            self._loop.defer(self._close_retired)

    def close(self, reason: str) -> None:
        """Close now; open streams are reset."""
        if self.closed:
            return
        self.closed = True
        self._keepalive.cancel()
        if self._company is not None:
            self._company.cancel()
        if not (self._blocked or self._lingers):
            self._send_waiting()
            self._session.say_goodbye()
        self._loop.close(self._sock)
        self._give_buffer()
        self._session.discard()
        for stream in list(self.streams.values()):
            self._tell(stream, stream.on_reset, f"tunnel lost: {reason}")
        self.streams.clear()
        self._owner.on_closed(self, reason)

    def on_ready(self, mask: int) -> None:
        if self.closed:
            return
        if self._lingers:
            self._throw_away()
            return
        if self._blocked:
            self.flush()
        if mask & ~WRITE and not self.closed:
            self._read()

    def on_failure(self, error: Exception) -> None:
        self.close(f"internal error: {error}")

    # Reading

    def _read_first(self) -> None:
        """What came with the end of the handshake, in one segment, is not told of by the loop."""
        if not (self.closed or self._lingers):
            self._read()

    def _read(self) -> None:
        """Read what there is, up to one buffer, and act on it."""
        scratch, session = self._buffers.scratch, self._session
        filled = session.read_into(scratch)
        if filled:
            self._heard = self._loop.now
            self._pinged = False
            self._dispatch(self.connection.receive(scratch.view[:filled], self._loop.now))
        if session.end:
            self.close(session.end)
        elif session.pending and not self._blocked and not self.closed:
            self._block()

    def _dispatch(self, events: list[Event]) -> None:
        streams = self.streams
        if events:
            self._progress = self._loop.now
        for number, event in enumerate(events):
            if type(event) is DataReceived:
                stream = streams.get(event.stream_id)
                if stream is None:
                    self.connection.consumed(event.stream_id, len(event.payload))
                else:
                    self._tell(stream, stream.on_data, event.payload)
            else:
                if type(event) is RequestReceived:
                    self.words_follow = _are_first_words(events, number + 1, event.stream_id)
                self._dispatch_control(event)
            if self.closed:
                return
        if self.connection.has_output:
            self.wake()
            self._mind_flood()

    def _dispatch_control(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._owner.on_request(self, event)
            case ResponseReceived(stream_id, status, headers):
                if stream := self.streams.get(stream_id):
                    self._tell(stream, stream.on_response, status, headers)
            case StreamEnded(stream_id):
                if stream := self.streams.get(stream_id):
                    self._tell(stream, stream.on_end)
            case StreamReset(stream_id, code):
                self._stream_gone(stream_id, code)
            case WindowOpened(stream_id):
                self._window_opened(stream_id)
            case GoAway():
                self.retired = True
                if not self.streams:
                    self._loop.defer(self._close_retired)
                self._owner.on_capacity(self)
            case SettingsReceived():
                self._owner.on_capacity(self)
            case ConnectionFailed(code, reason):
                self.flush()
                self.close(f"{code.name}: {reason}")

    def _stream_gone(self, stream_id: int, code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._tell(stream, stream.on_reset, f"stream reset, code {code}")
            self.release(stream_id)

    def _window_opened(self, stream_id: int) -> None:
        if stream_id:
            starved = [self._starved.pop(stream_id)] if stream_id in self._starved else []
        else:
            starved = list(self._starved.values())
            self._starved.clear()
        for stream in starved:
            self._tell(stream, stream.pump)

    def _tell(self, stream: TunnelStream, event: Callable[..., None], *args: object) -> None:
        """Call a method of a stream; a bug there ends that stream only."""
        try:
            event(*args)
        except Exception as error:
            log.error("stream failed", peer=self.peer, exc_info=error)
            stream.on_failure(error)

    # Writing

    def _make_room(self, wanted: int) -> bool:
        """Have place for a frame behind what must go first; False when the tunnel blocks."""
        if self._has_control():
            self._gather_control()
        free = BUFFER_SIZE - self._filled - FRAME_HEADER
        if self._backlog or (free < wanted and free < SMALLEST_READ):
            self.flush()
        return not self._blocked and not self.closed

    def _has_control(self) -> bool:
        return self.connection.has_output or bool(self._backlog)

    def _gather_control(self) -> None:
        """Put queued control frames, as far as there is room, behind what is gathered already."""
        control = self._backlog + self.connection.take_output()
        out = self._out or self._take_buffer()
        end = min(self._filled + len(control), BUFFER_SIZE)
        count = end - self._filled
        out.view[self._filled : end] = control[:count]
        self._backlog = control[count:]
        self._filled = end

    def _write_out(self) -> bool:
        """Write all there is; False when the socket does not take all of it now."""
        if not self._session.flush():
            return False
        while True:
            if self._has_control():
                self._gather_control()
            if self._out is None:
                return True
            done = self._session.write(self._out, self._filled)
            self._give_buffer()
            if not done:
                return False

    def _block(self) -> None:
        self._blocked = True
        self._watch(READ | WRITE)
        self._mind_flood()

    def _unblock(self) -> None:
        self._blocked = False
        self._watch(READ)
        for _ in range(len(self._turns)):
            if self._blocked or self.closed:
                return
            stream = self._turns.popleft()
            if stream in self._waiting:
                self._waiting.discard(stream)
                self._tell(stream, stream.pump)
        if self.retired and not self.streams:
            self._loop.defer(self._close_retired)

    def _await_turn(self, stream: TunnelStream) -> None:
        if stream not in self._waiting:
            self._waiting.add(stream)
            self._turns.append(stream)

    def _mind_flood(self) -> None:
        """A peer that makes us answer but does not read the answers is not listened to."""
        if self._blocked:
            self._backlog += self.connection.take_output()
            if len(self._backlog) > MAX_CONTROL:
                self._watch(WRITE)

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._loop.modify(self._sock.fileno(), mask)

    def _take_buffer(self) -> Buffer:
        self._out = self._buffers.take()
        return self._out

    def _give_buffer(self) -> None:
        if self._out is not None:
            self._buffers.give(self._out)
        self._out = None
        self._filled = 0

    # Health

    def _check_alive(self) -> None:
        now = self._loop.now
        if now - self._heard >= PING_INTERVAL + PING_TIMEOUT:
            self.close("no answer to PING")
            return
        if self._role is Role.SERVER and not self.streams and self._drips(now):
            self.close("no complete frame")
            return
        if not self.retired and credentials.has_outlived(self._session.peer_certificate):
            self.retire()  # whoever may still speak in that name has a new certificate
        if now - self._heard >= PING_INTERVAL and not self._pinged:
            self._pinged = True
            self.connection.ping(b"ztunnel\0")
            self.wake()
        self._keepalive = self._loop.call_later(PING_INTERVAL, self._check_alive)

    def _drips(self, now: float) -> bool:
        """Octets come, but for too long no whole frame: a peer that only holds us open."""
        return self._heard - self._progress > IDLE_WITHOUT_PROGRESS or (
            self._progress == self.opened_at and now - self.opened_at >= PING_INTERVAL
        )

    def _close_retired(self) -> None:
        """End what is retired and idle, so that the peer still gets every byte.

        To close with unread octets in the socket would be a reset that overtakes the last of
        ours: so send FIN, and throw away what comes until the peer's FIN.
        """
        if self.streams or self.closed or self._lingers:
            return
        self.flush()
        if self._blocked or self.closed:
            return  # `_unblock` comes back here
        self._lingers = True
        self._keepalive.cancel()
        self._keepalive = self._loop.call_later(LINGER, self._lingered)
        self._session.say_goodbye()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._lingered()

    def _throw_away(self) -> None:
        """Read what a peer still says after our end."""
        try:
            while self._sock.recv_into(self._buffers.scratch.view):
                pass
        except BlockingIOError:
            return
        except OSError:
            pass
        self._lingered()

    def _lingered(self) -> None:
        self.close("retired")


def _are_first_words(events: list[Event], at: int, stream_id: int) -> bool:
    """Whether there is data of a stream at this place, and not so much that more is likely."""
    if at >= len(events):
        return False
    event = events[at]
    return (
        isinstance(event, DataReceived)
        and event.stream_id == stream_id
        and len(event.payload) < FIRST_WORDS
    )
