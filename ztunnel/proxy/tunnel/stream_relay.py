# SPDX-License-Identifier: Apache-2.0
"""Relays bytes between an application's socket and a stream of a tunnel.

There is no object per chunk and no unbounded queue. Towards the tunnel, a payload is read straight
into the tunnel's buffer, and only when stream window and TLS have room. Towards the application, a
payload is written at once. What the socket does not accept is buffered here: the stream gets credit
only for delivered bytes, so its window bounds the buffer. The connection gets that credit earlier
(`Tunnel.hold`), so a slow application does not stop other streams.

FIN and END_STREAM are translated in each direction separately. A reset of either side resets the
other.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Header
from ztunnel.proxy.conntrack.record import Record
from ztunnel.proxy.io.event_loop import EDGE, ENDING, HANGUP, READ, WRITE, EventLoop
from ztunnel.proxy.tunnel.state import CLOSED
from ztunnel.proxy.tunnel.tunnel import Tunnel

APP_EVENTS = READ | EDGE  # of an application's socket; WRITE is added when a write first blocks

# Called at the end. After both FINs: with the socket, which the loop still watches, and no error.
# After an error: with None, because the socket was reset, and the reason.
RelayEnded = Callable[[socket.socket | None, str], None]


class StreamRelay:
    """One connection of an application, carried by one stream.

    The loop must already watch `sock` for APP_EVENTS.
    """

    __slots__ = (
        "_app_closed", "_app_ending", "_app_shut", "_ended", "_is_closed", "_loop", "_pending",
        "_pump_deferred", "_record", "_sock", "_tunnel", "_tunnel_ended", "_watches_write",
        "stream_id",
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
        self._app_ending = False  # the application's FIN or error follows the unread bytes
        self._app_closed = False  # the application's FIN was read
        self._app_shut = False  # FIN was sent to the application
        self._tunnel_ended = False  # END_STREAM was received
        self._watches_write = False
        self._pump_deferred = False
        self._is_closed = False

    def begin(self, seen_events: int = 0) -> None:
        """Become the handler of the socket and the stream. The relay may end before this returns.

        `seen_events`: earlier events of the socket, which the loop may not report again.
        """
        self._loop.rebind(self._sock.fileno(), self)
        self._tunnel.attach(self.stream_id, self)
        if seen_events:
            self.on_ready(seen_events)

    # Application → tunnel

    def on_ready(self, mask: int) -> None:
        if mask & ENDING:
            self._app_ending = True
        if mask & WRITE and self._pending:
            self._flush_pending()
        if mask & ~WRITE and not self._is_closed:
            self.pump()
            if mask & HANGUP and not self._is_closed and not self._pump_deferred:
                self._on_hangup()

    def pump(self) -> None:
        """Read once from the application into the tunnel; defer another read if there is more."""
        self._pump_deferred = False
        if self._app_closed or self._is_closed:
            return
        room = self._tunnel.claim(self)
        if room is None:
            return
        try:
            count = self._sock.recv_into(room)
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
            self._finish_if_done()
            return
        self._record.sent += count
        self._tunnel.commit(self.stream_id, count)
        if count == len(room) or self._app_ending:
            self._defer_pump()

    def _defer_pump(self) -> None:
        if not self._pump_deferred:
            self._pump_deferred = True
            self._loop.defer(self.pump)

    def _on_hangup(self) -> None:
        """The socket closed while its bytes wait for the tunnel: reset if it failed."""
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail("application: connection reset", ErrorCode.CONNECT_ERROR)

    # Tunnel → application

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None:
        """The response arrived before the relay; the codec allows no second one."""

    def on_data(self, payload: memoryview) -> None:
        size = len(payload)
        self._record.received += size
        if self._pending:
            self._buffer(payload)
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
            self._buffer(payload[count:])
            self._watch_write()

    def _buffer(self, payload: memoryview) -> None:
        self._pending += payload
        self._tunnel.hold(len(payload))

    def on_end(self) -> None:
        self._tunnel_ended = True
        if not self._pending:
            self._shut_app()

    def on_reset(self, reason: str) -> None:
        if self._tunnel_ended and self._app_closed:
            return  # both directions ended before: the application still gets the buffered bytes
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
        del pending[:count]  # moves no bytes: a bytearray stores where its content starts
        self._tunnel.consumed_held(self.stream_id, count)
        if self._tunnel_ended and not pending:
            self._shut_app()

    def _watch_write(self) -> None:
        if not self._watches_write:
            self._watches_write = True
            self._loop.modify(self._sock.fileno(), APP_EVENTS | WRITE)

    def _shut_app(self) -> None:
        if self._app_shut or self._is_closed:
            return
        self._app_shut = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(f"application: {error.strerror}", ErrorCode.CONNECT_ERROR)
            return
        self._finish_if_done()

    # Closing

    def abort(self, reason: str) -> None:
        """Reset both sides now."""
        self._fail(reason, ErrorCode.CANCEL)

    def _finish_if_done(self) -> None:
        if self._app_closed and self._app_shut and not self._is_closed:
            self._is_closed = True
            self._tunnel.release(self.stream_id)
            self._loop.after_flushes(self._report_end)

    def _report_end(self) -> None:
        self._ended(self._sock, "")

    def _fail(self, reason: str, code: ErrorCode | None) -> None:
        """Reset both sides; `code` is None when the stream no longer exists."""
        if self._is_closed:
            return
        self._is_closed = True
        waiting = len(self._pending)
        self._pending.clear()
        if self._tunnel.state is not CLOSED:
            if waiting:
                self._tunnel.consumed_held(self.stream_id, waiting)
            if code is not None:
                self._tunnel.reset(self.stream_id, code)
        self._loop.close(self._sock)  # a reset, see `sockets.reset_on_close`
        self._ended(None, reason)
