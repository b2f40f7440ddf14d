# SPDX-License-Identifier: Apache-2.0
"""The API that a tunnel offers to its streams: open, respond, send, give credit, end."""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.hbone.buffer_budget import BufferShare
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Header
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import EventLoop
from ztunnel.proxy.tunnel.interfaces import Session, TunnelStream
from ztunnel.proxy.tunnel.send_queue import SendQueue
from ztunnel.proxy.tunnel.state import CLOSED, OPEN
from ztunnel.proxy.tunnel.write_coalescer import WriteCoalescer


class TunnelStreams:
    """The streams of one tunnel. `Tunnel` adds I/O and the tunnel's own life cycle."""

    def __init__(
        self,
        loop: EventLoop,
        buffers: BufferPool,
        session: Session,
        role: Role,
        share: BufferShare,
    ) -> None:
        self.connection = Connection(role, share=share, extended_connect=role is Role.SERVER)
        self.streams: dict[int, TunnelStream] = {}
        self.state = OPEN
        self.last_used_at = loop.now
        self.stream_count = 0  # since the tunnel was opened
        self._loop = loop
        self._writer = WriteCoalescer(loop, buffers, self.connection, session, self.flush)
        self._queue = SendQueue()

    def flush(self) -> None:
        """Hand the collected frames to TLS."""
        raise NotImplementedError

    def _stream_released(self) -> None:
        """A stream has ended on a tunnel that is not closed."""
        raise NotImplementedError

    # Streams

    @property
    def can_open(self) -> bool:
        """Whether `open` may be called now."""
        return self.state is OPEN and self.connection.can_open_stream

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
        if self.state is not CLOSED:
            self._stream_released()

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
