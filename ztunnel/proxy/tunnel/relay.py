# SPDX-License-Identifier: Apache-2.0
"""Bytes between an application's socket and a tunnel's stream, or between two sockets.

No object per chunk, no queue without a bound: towards the tunnel a payload is read straight into
the tunnel's buffer, and only when its window and TLS have room; towards the application it is
written at once, and what the socket does not take waits here, bounded by the stream's window
because the stream gets credit only for bytes that left. The tunnel gets it before (`hold`).

FIN ↔ END_STREAM each way on its own; a reset on either side becomes a reset on the other.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Header
from ztunnel.proxy.conntrack.record import Record
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import EDGE, ENDING, HANGUP, READ, WRITE, EventLoop
from ztunnel.proxy.io.sockets import fin_on_close
from ztunnel.proxy.tunnel.tunnel import Tunnel, TunnelState

_CLOSED: Final[TunnelState] = TunnelState.CLOSED
APP_EVENTS = READ | EDGE  # an application's socket; WRITE is added the first time a write blocks

# What ended a relay: empty for both FINs seen, else the error. The socket is given only after an
# orderly end, still watched by the loop; after an error it is reset and closed already.
RelayEnded = Callable[[socket.socket | None, str], None]


class StreamRelay:
    """One connection of an application, carried by one stream.

    `sock` is watched by the loop with WATCH already.
    """

    __slots__ = (
        "_app_closed", "_app_ending", "_app_shut", "_ended", "_loop", "_over", "_pending",
        "_queued", "_record", "_sock", "_tunnel", "_tunnel_ended", "_watches_write", "stream_id",
    )  # fmt: skip

    def __init__(
        self,
        loop: EventLoop,
        tunnel: Tunnel,
        stream_id: int,
        sock: socket.socket,
        *,
        record: Record,
        ended: RelayEnded,
    ) -> None:
        self.stream_id = stream_id
        self._loop = loop
        self._tunnel = tunnel
        self._sock = sock
        self._record = record
        record.established = True
        self._ended = ended
        self._pending = bytearray()  # for the application
        self._app_ending = False  # FIN or error is in the socket behind what is unread
        self._app_closed = False  # FIN read
        self._app_shut = False  # FIN sent
        self._tunnel_ended = False  # END_STREAM received
        self._watches_write = False
        self._queued = False
        self._over = False

    def begin(self, seen: int = 0) -> None:
        """Take over the socket and the stream; the end may come before this returns.

        `seen`: events of the socket to act on at once; they may not be reported again.
        """
        self._loop.rebind(self._sock.fileno(), self)
        self._tunnel.attach(self.stream_id, self)
        if seen:
            self.on_ready(seen)

    # Application → tunnel

    def on_ready(self, mask: int) -> None:
        if mask & ENDING:
            self._app_ending = True
        if mask & WRITE and self._pending:
            self._flush_pending()
        if mask & ~WRITE and not self._over:
            self.pump()
            if mask & HANGUP and not self._over and not self._queued:
                self._hung_up()

    def pump(self) -> None:
        """Read once from the application into the tunnel; again later if there was more."""
        self._queued = False
        if self._app_closed or self._over:
            return
        view = self._tunnel.claim(self)
        if view is None:
            return
        try:
            count = self._sock.recv_into(view)
        except BlockingIOError:
            self._tunnel.abandon()
            return
        except OSError as error:
            self._tunnel.abandon()
            self._fail(f"application: {error.strerror}", ErrorCode.CONNECT_ERROR)
            return
        if not count:
            self._tunnel.abandon()
            self._app_closed = True
            self._tunnel.end_stream(self.stream_id)
            self._maybe_done()
            return
        self._record.sent += count
        self._tunnel.commit(self.stream_id, count)
        if count == len(view) or self._app_ending:
            self._again()

    def _again(self) -> None:
        if not self._queued:
            self._queued = True
            self._loop.defer(self.pump)

    def _hung_up(self) -> None:
        """The socket is dead while its bytes have to wait: a reset, unless it only ended."""
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail("application: connection reset", ErrorCode.CONNECT_ERROR)

    # Tunnel → application

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None:
        """Only the one before the relay began counts."""

    def on_data(self, payload: memoryview) -> None:
        size = len(payload)
        self._record.received += size
        if self._pending:
            self._keep(payload)
            return
        try:
            count = self._sock.send(payload)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._tunnel.consumed(self.stream_id, size)
            self._fail(f"application: {error.strerror}", ErrorCode.CONNECT_ERROR)
            return
        if count:
            self._tunnel.consumed(self.stream_id, count)
        if count < size:
            self._keep(payload[count:])
            self._watch_write()

    def _keep(self, payload: memoryview) -> None:
        self._pending += payload
        self._tunnel.hold(len(payload))

    def on_end(self) -> None:
        self._tunnel_ended = True
        if not self._pending:
            self._shut_app()

    def on_reset(self, reason: str) -> None:
        if self._tunnel_ended and self._app_closed:
            return  # all was said both ways before: what waits for the app is still its due
        self._fail(reason, None)

    def on_failure(self, error: Exception) -> None:
        self._fail(f"internal error: {error}", ErrorCode.INTERNAL_ERROR)

    def _flush_pending(self) -> None:
        pending = self._pending
        try:
            count = self._sock.send(pending)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"application: {error.strerror}", ErrorCode.CONNECT_ERROR)
            return
        del pending[:count]  # moves no byte: a bytearray remembers where it starts
        self._tunnel.consumed_held(self.stream_id, count)
        if self._tunnel_ended and not pending:
            self._shut_app()

    def _watch_write(self) -> None:
        if not self._watches_write:
            self._watches_write = True
            self._loop.modify(self._sock.fileno(), APP_EVENTS | WRITE)

    def _shut_app(self) -> None:
        if self._app_shut or self._over:
            return
        self._app_shut = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(f"application: {error.strerror}", ErrorCode.CONNECT_ERROR)
            return
        self._maybe_done()

    # Ends

    def abort(self, reason: str) -> None:
        """Reset both sides now."""
        self._fail(reason, ErrorCode.CANCEL)

    def _maybe_done(self) -> None:
        if self._app_closed and self._app_shut and not self._over:
            self._over = True
            self._tunnel.release(self.stream_id)
            self._loop.after_flushes(self._tell_end)

    def _tell_end(self) -> None:
        self._ended(self._sock, "")

    def _fail(self, reason: str, code: ErrorCode | None) -> None:
        """Reset both sides; `code` None when the stream is gone already."""
        if self._over:
            return
        self._over = True
        waiting = len(self._pending)
        self._pending.clear()
        if self._tunnel.state is not _CLOSED:
            if waiting:
                self._tunnel.consumed_held(self.stream_id, waiting)
            if code is not None:
                self._tunnel.reset(self.stream_id, code)
        self._loop.close(self._sock)  # a reset, see `sockets.reset_on_close`
        self._ended(None, reason)


class SocketSide:
    """One socket of a PlainRelay: what was read from it, and what waits to be written to it."""

    __slots__ = ("closed", "ending", "pending", "queued", "relay", "shut", "sock", "writes")

    def __init__(self, relay: SocketRelay, sock: socket.socket) -> None:
        self.relay = relay
        self.sock = sock
        self.pending = memoryview(b"")
        self.closed = False  # FIN read
        self.shut = False  # FIN sent
        self.ending = False
        self.queued = False
        self.writes = False  # watched for WRITE

    def on_ready(self, mask: int) -> None:
        if mask & ENDING:
            self.ending = True
        self.relay.on_ready(self, mask)

    def pump(self) -> None:
        self.queued = False
        self.relay.pump(self)

    def on_failure(self, error: Exception) -> None:
        self.relay.abort(f"internal error: {error}")


class SocketRelay:
    """Two sockets, both ways, each watched by the loop with WATCH already."""

    def __init__(
        self,
        loop: EventLoop,
        buffers: BufferPool,
        near: socket.socket,
        far: socket.socket,
        *,
        record: Record,
        ended: RelayEnded,
        inbound: bool = False,
    ) -> None:
        """`far` is given to `ended`. The pod is the near side, or the far one when `inbound`."""
        self._loop = loop
        self._buffers = buffers
        self._record = record
        record.established = True
        self._ended = ended
        self._over = False
        self._near = SocketSide(self, near)
        self._far = SocketSide(self, far)
        self._pod = self._far if inbound else self._near

    def begin(self, seen: int = 0) -> None:
        """Take over both sockets; the end may come before this returns.

        `seen`: events of the near socket to act on at once; they may not be reported again.
        """
        for end in (self._near, self._far):
            self._loop.rebind(end.sock.fileno(), end)
        if seen:
            self._near.on_ready(seen)

    def on_ready(self, end: SocketSide, mask: int) -> None:
        if self._over:
            return
        if mask & WRITE and end.pending:
            self._flush(end)
        if mask & ~WRITE and not self._over:
            self.pump(end)
            if mask & HANGUP and self._other(end).pending and not self._over:
                self._hung_up(end)

    def pump(self, source: SocketSide) -> None:
        """Read once from `source`, write to the other; again later if there was more."""
        target = self._other(source)
        if self._over or source.closed or target.pending:
            return
        buffer = self._buffers.acquire()
        try:
            count = source.sock.recv_into(buffer.view)
            if count:
                self._count(source, count)
                self._write(target, buffer.view[:count])
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(f"{self._name(source)}: {error.strerror}")
            return
        finally:
            self._buffers.release(buffer)
        if not count:
            source.closed = True
            self._shut(target)
        elif (count == len(buffer.view) or source.ending) and not source.queued:
            source.queued = True
            self._loop.defer(source.pump)

    def abort(self, reason: str) -> None:
        """Reset both sides now."""
        if self._over:
            return
        self._over = True
        for end in (self._near, self._far):
            self._loop.close(end.sock)  # a reset, see `sockets.reset_on_close`
        self._ended(None, reason)

    def _write(self, target: SocketSide, payload: memoryview) -> None:
        try:
            count = target.sock.send(payload)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self.abort(f"{self._name(target)}: {error.strerror}")
            return
        if count < len(payload):
            target.pending = memoryview(bytes(payload[count:]))
            if not target.writes:
                target.writes = True
                self._loop.modify(target.sock.fileno(), APP_EVENTS | WRITE)

    def _flush(self, target: SocketSide) -> None:
        try:
            count = target.sock.send(target.pending)
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(f"{self._name(target)}: {error.strerror}")
            return
        target.pending = target.pending[count:]
        if target.pending:
            return
        source = self._other(target)
        if source.closed:
            self._shut(target)
        else:
            self.pump(source)

    def _shut(self, target: SocketSide) -> None:
        if target.pending or target.shut:
            return
        target.shut = True
        try:
            target.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.abort(f"{self._name(target)}: {error.strerror}")
            return
        if self._near.shut and self._far.shut:
            self._over = True
            fin_on_close(self._near.sock)
            self._loop.close(self._near.sock, unshared=True)
            self._ended(self._far.sock, "")

    def _hung_up(self, end: SocketSide) -> None:
        if end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abort(f"{self._name(end)}: connection reset")

    def _other(self, end: SocketSide) -> SocketSide:
        return self._far if end is self._near else self._near

    def _name(self, end: SocketSide) -> str:
        return "client" if end is self._near else "server"

    def _count(self, source: SocketSide, count: int) -> None:
        if source is self._pod:
            self._record.sent += count
        else:
            self._record.received += count
