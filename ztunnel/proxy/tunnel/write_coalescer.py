# SPDX-License-Identifier: Apache-2.0
"""Collects the frames of a tunnel, so that many small ones share a TLS record.

    reserve → recv_into → commit ┐
    schedule_flush               ├─▶ one buffer ─ end of the turn ─▶ write_out ─▶ TLS ─▶ socket
    schedule_control             ┘       │
                                         └ control frames alone, if they may wait: after 1 ms

Control frames (HEADERS, RST_STREAM, WINDOW_UPDATE, ...) are queued in the codec, and move into the
buffer before any DATA frame that was made later: the order on the wire is the order of the calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ztunnel.hbone.connection import Connection
from ztunnel.hbone.constants import FRAME_HEADER_BYTES
from ztunnel.proxy.io.buffers import BUFFER_BYTES, Buffer, BufferPool
from ztunnel.proxy.io.event_loop import EventLoop, Timer
from ztunnel.proxy.tunnel.interfaces import Session

MIN_READ_BYTES = 16 * 1024  # flush first rather than offer less room than this to a reader
# How long a response or an END_STREAM may wait for other frames to share a record with (decision
# 0024). epoll waits in milliseconds. A record less saves one system call here and two at the peer.
COALESCE_DELAY_S = 0.001
BUSY_GAP_S = 0.002  # a tunnel is busy while streams open within this time of each other


class WriteCoalescer:
    """The outgoing frames of one tunnel."""

    def __init__(
        self,
        loop: EventLoop,
        buffers: BufferPool,
        connection: Connection,
        session: Session,
        flush: Callable[[], None],
    ) -> None:
        """`flush` calls `write_out` and handles its outcome; `reserve` calls it when it is full."""
        self.blocked = False  # the socket did not accept everything: it is watched for WRITE
        self.flush_scheduled = False
        self._loop = loop
        self._buffers = buffers
        self._connection = connection
        self._session = session
        self._flush = flush
        self._buffer: Buffer | None = None
        self._filled = 0  # bytes of `_buffer` to send
        self._control = b""  # control frames that are not in `_buffer` yet
        self._delay: Timer | None = None  # runs while control frames wait for other frames
        self._stream_opened_at = -BUSY_GAP_S
        self._stream_gap = BUSY_GAP_S  # between the latest two streams
        self._closed = False

    # DATA

    def reserve(self, wanted: int) -> memoryview | None:
        """Room for the payload of one DATA frame, at most `wanted` bytes and never empty.

        None when the tunnel is blocked or closed. `commit` or `abandon` must follow.
        """
        if self._connection.has_output or self._control:
            self._append_control()
        free = BUFFER_BYTES - self._filled - FRAME_HEADER_BYTES
        if self._control or (free < wanted and free < MIN_READ_BYTES):
            self._flush()
            if self.blocked or self._closed:
                return None
        buffer = self._buffer or self._acquire_buffer()
        start = self._filled + FRAME_HEADER_BYTES
        return buffer.view[start : min(start + wanted, BUFFER_BYTES)]

    def commit(self, stream_id: int, length: int) -> None:
        """The reserved room holds `length` ≥ 1 bytes: the stream's next DATA frame."""
        assert self._buffer is not None
        self._connection.write_data_header_into(self._buffer.data, self._filled, stream_id, length)
        self._filled += FRAME_HEADER_BYTES + length
        self.schedule_flush()

    def abandon(self) -> None:
        """The reserved room stays unused."""
        if not self._filled:
            self._release_buffer()

    # Scheduling

    def on_stream_opened(self) -> None:
        """A new stream: they decide whether the tunnel is busy."""
        now = self._loop.now
        self._stream_gap, self._stream_opened_at = now - self._stream_opened_at, now

    @property
    def is_busy(self) -> bool:
        """Streams open quickly, so another frame is likely to follow within `COALESCE_DELAY_S`."""
        if self._stream_gap >= BUSY_GAP_S:
            return False
        return self._loop.now - self._stream_opened_at < BUSY_GAP_S

    @property
    def is_empty(self) -> bool:
        """Nothing is to be sent at the end of this turn. Delayed control frames do not count."""
        return not (self.flush_scheduled or self._connection.has_output)

    def schedule_flush(self) -> None:
        """Flush at the end of this turn."""
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self._loop.at_end_of_turn(self._flush)

    def schedule_control(self, *, may_wait: bool) -> None:
        """Send the queued control frames; `may_wait` allows a delay of `COALESCE_DELAY_S`."""
        if not may_wait:
            self.schedule_flush()
            return
        self._control += self._connection.take_output()
        if self._delay is None:
            self._delay = self._loop.call_later(COALESCE_DELAY_S, self._delay_expired)

    def _delay_expired(self) -> None:
        self._delay = None
        if self._control:
            self.schedule_flush()

    def queued_control_bytes(self) -> int:
        """Bytes of control frames that wait, those in the codec included."""
        self._control += self._connection.take_output()
        return len(self._control)

    # Writing

    def write_out(self) -> bool:
        """Write everything. False when the socket does not accept all of it now. Raises OSError."""
        if not self._session.flush():
            return False
        while True:
            if self._connection.has_output or self._control:
                self._append_control()
            if self._buffer is None:
                return True
            done = self._session.write(self._buffer, self._filled)
            self._release_buffer()
            if not done:
                return False

    def send_delayed(self) -> None:
        """Write control frames that still wait: the END_STREAM of a stream that ended cleanly."""
        if self._control:
            with contextlib.suppress(OSError):
                self.write_out()

    def cancel_delay(self) -> None:
        """Stop the timer of delayed control frames."""
        if self._delay is not None:
            self._delay.cancel()

    def close(self) -> None:
        """Drop what was not sent."""
        self._closed = True
        self._release_buffer()
        self._flush = _do_nothing  # otherwise tunnel and coalescer form a cycle

    def _append_control(self) -> None:
        """Move control frames into the buffer, behind what is there, as far as they fit."""
        control = self._control + self._connection.take_output()
        buffer = self._buffer or self._acquire_buffer()
        end = min(self._filled + len(control), BUFFER_BYTES)
        count = end - self._filled
        buffer.view[self._filled : end] = control[:count]
        self._control = control[count:]
        self._filled = end

    def _acquire_buffer(self) -> Buffer:
        self._buffer = self._buffers.acquire()
        return self._buffer

    def _release_buffer(self) -> None:
        if self._buffer is not None:
            self._buffers.release(self._buffer)
        self._buffer = None
        self._filled = 0


def _do_nothing() -> None:
    """Stands in for a flush after `close`."""
