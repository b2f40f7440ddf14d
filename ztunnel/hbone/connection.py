# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 of one HBONE connection: received octets become events, calls become octets to send.

No socket and no clock. The caller owns the transport:

    conn = Connection(Role.CLIENT)
    send(conn.take_output())                      # preface and SETTINGS
    sid = conn.request([(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80"), ...])
    send(conn.take_output())
    for event in conn.receive(memoryview(chunk), now): ...

Payload is never copied. To send it, read the application's octets into a buffer at offset 9; the
codec writes the frame header in front of them:

    n = app.recv_into(buffer[9 : 9 + conn.sendable(sid)])
    conn.write_data_header_into(buffer, 0, sid, n)
    send(conn.take_output())
    send(buffer[: 9 + n])

The caller preserves the order: send what `take_output` returns before a DATA frame that was made
later, and send nothing between a frame header and its payload.
"""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.hbone import constants, frames
from ztunnel.hbone.connection_state import Role
from ztunnel.hbone.errors import ApiMisuseError, ErrorCode, H2ConnectionError, StreamError
from ztunnel.hbone.events import ConnectionFailed, Event, Header, StreamReset
from ztunnel.hbone.frame_handlers import FrameHandlers
from ztunnel.hbone.frames import HEAD
from ztunnel.hbone.headers import encode, encode_response
from ztunnel.hbone.parsed_frames import DataPiece, Frame, HeaderBlock
from ztunnel.hbone.streams import Stream

__all__ = ["Connection", "Role"]


class Connection(FrameHandlers):
    """The API of one connection. Not thread-safe.

    Methods that send raise `ApiMisuseError` if the caller breaks the protocol. No input from a peer
    makes a method raise.
    """

    # State

    @property
    def open_streams(self) -> int:
        """The number of streams that are not closed in both directions."""
        return len(self._live)

    @property
    def can_open_stream(self) -> bool:
        """Client: whether `request` is allowed now (peer's limit, GOAWAY, stream IDs)."""
        return (
            not self._is_server
            and not self._failed
            and self._goaway_sent is None
            and self._goaway_received is None
            and len(self._live) < self._peer.max_streams
            and self._streams.next_id <= constants.MAX_STREAM_ID
        )

    @property
    def failed(self) -> bool:
        """`ConnectionFailed` was reported: send the output and close."""
        return self._failed

    @property
    def peer_extended_connect(self) -> bool:
        """Client: the peer accepts extended CONNECT (RFC 8441)."""
        return self._peer.extended_connect

    @property
    def settings_received(self) -> bool:
        """The peer's first SETTINGS arrived: it speaks HTTP/2, and its capabilities are known."""
        return self._settings_received

    # Sending

    @property
    def has_output(self) -> bool:
        """Whether `take_output` would return anything."""
        return bool(self._out)

    def take_output(self) -> bytes:
        """All control frames queued since the last call, in the order to send them."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def request(
        self, headers: Iterable[Header], *, head: bytes = b"", end_stream: bool = False
    ) -> int:
        """Client: open a stream; returns its ID. Pseudo-header fields must come first.

        `head`: encoded fields (`headers.encode`) that precede `headers`.
        Raises ApiMisuseError unless `can_open_stream`.
        """
        if not self.can_open_stream:
            raise ApiMisuseError("no stream may be opened now; hint: check can_open_stream first")
        block = head + encode(headers)
        stream = self._streams.open(self._streams.next_id, self._peer.initial_window)
        self._queue_headers(stream, block, end_stream)
        return stream.stream_id

    def respond(
        self,
        stream_id: int,
        status: int,
        headers: Iterable[Header] = (),
        *,
        end_stream: bool = False,
    ) -> None:
        """Server: send the final response. No effect if the stream no longer exists.

        To refuse a request, pass `end_stream=True` and then call `reset(stream_id, NO_ERROR)`.
        """
        stream = self._live.get(stream_id)
        if stream is None:
            return
        if not self._is_server or stream.answered or not 200 <= status <= 599:
            raise ApiMisuseError(
                f"response {status} on stream {stream_id} is not allowed now, or not final"
            )
        stream.answered = True
        self._queue_headers(stream, encode_response(status, tuple(headers)), end_stream)

    def _queue_headers(self, stream: Stream, block: bytes, end_stream: bool) -> None:
        self._out += frames.header_frames(
            stream.stream_id,
            self._block_prefix + block,
            self._peer.max_frame,
            end_stream=end_stream,
        )
        self._block_prefix = b""
        if end_stream:
            self._streams.close_local(stream)

    def sendable(self, stream_id: int) -> int:
        """Octets that one DATA frame may carry now; 0 if the stream is blocked, ended or unknown.

        When 0, wait for `WindowOpened` of the stream or of stream 0.
        """
        stream = self._live.get(stream_id)
        return 0 if stream is None else self._room(stream)

    def window(self, stream_id: int) -> int:
        """Octets that several DATA frames may carry now: `sendable` without frame size limit."""
        stream = self._live.get(stream_id)
        if stream is None or not self._room(stream):
            return 0
        return min(stream.send_window.available, self._send_window.available)

    def _room(self, stream: Stream) -> int:
        if not stream.local_open or (self._is_server and not stream.answered):
            return 0
        room = min(stream.send_window.available, self._send_window.available, self._peer.max_frame)
        return room if room > 0 else 0

    def data_frame_header(self, stream_id: int, length: int, *, end_stream: bool = False) -> bytes:
        """The 9-octet header of a DATA frame of `length` ≤ `sendable`; reduces the windows."""
        header = bytearray(constants.FRAME_HEADER_BYTES)
        self.write_data_header_into(header, 0, stream_id, length, end_stream=end_stream)
        return bytes(header)

    def write_data_header_into(
        self,
        buffer: bytearray | memoryview,
        offset: int,
        stream_id: int,
        length: int,
        *,
        end_stream: bool = False,
    ) -> None:
        """As `data_frame_header`, written to `buffer[offset:offset + 9]`."""
        stream = self._live.get(stream_id)
        if stream is None or not stream.local_open or (self._is_server and not stream.answered):
            raise ApiMisuseError(f"stream {stream_id} is not answered, has ended or does not exist")
        if length > self._room(stream) or (length <= 0 and not end_stream):
            raise ApiMisuseError(f"DATA of {length} octets on stream {stream_id}: not sendable")
        HEAD.pack_into(buffer, offset, length >> 8, length & 0xFF, 0, end_stream, stream_id)
        stream.send_window.available -= length
        self._send_window.available -= length
        if end_stream:
            self._streams.close_local(stream)

    def end_stream(self, stream_id: int) -> None:
        """Close the local half: an empty DATA frame with END_STREAM. Idempotent."""
        stream = self._live.get(stream_id)
        if stream is not None and stream.local_open:
            self._out += self.data_frame_header(stream_id, 0, end_stream=True)

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """Close the stream in both directions with RST_STREAM. Idempotent; no event follows."""
        if stream_id in self._live:
            self._refuse(stream_id, code)

    def ping(self, payload: bytes) -> None:
        """Send PING with these 8 octets; `PongReceived` returns them."""
        if len(payload) != 8:
            raise ApiMisuseError(f"PING carries 8 octets, not {len(payload)}")
        self._out += frames.ping(payload)

    def goaway(self, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Refuse new streams of the peer and open none; open streams continue."""
        if self._goaway_sent is None:
            self._goaway_sent = max(self._streams.highest, 0) if self._is_server else 0
        self._out += frames.goaway(self._goaway_sent, code)

    def announce_goaway(self) -> None:
        """Server: ask the peer to open no more streams; those on the way are still accepted.

        RFC 9113 6.8: `goaway` follows after a round trip.
        """
        self._out += frames.goaway(constants.MAX_STREAM_ID, ErrorCode.NO_ERROR)

    # Receiving

    def receive(self, data: memoryview, now: float) -> list[Event]:
        """Process octets from the transport; `now` is in monotonic seconds.

        Consumes the whole chunk. The payload of a DATA frame is passed on as it arrives, without
        waiting for the end of the frame. Only the flood limits use the time.
        """
        events: list[Event] = []
        if self._failed:
            return events
        self._now = now
        try:
            for unit in self._reader.feed(data):
                try:
                    if type(unit) is DataPiece:
                        self._on_data(unit, events)
                    elif type(unit) is HeaderBlock:
                        self._on_headers(unit, events)
                    elif type(unit) is Frame:
                        self._on_frame(unit, events)
                except StreamError as one:
                    self._on_stream_error(one, events)
            if len(self._out) > constants.MAX_QUEUED_OUTPUT_BYTES:
                raise H2ConnectionError(
                    ErrorCode.ENHANCE_YOUR_CALM, "the peer does not read our control frames"
                )
        except H2ConnectionError as error:  # not `one` again: mypyc gives each name one type
            self._fail(error, events)
        return events

    def _fail(self, error: H2ConnectionError, events: list[Event]) -> None:
        self.goaway(error.code)
        self._failed = True
        self._live.clear()
        events.append(ConnectionFailed(error.code, error.reason))

    def _on_stream_error(self, error: StreamError, events: list[Event]) -> None:
        self._count_reset()
        if error.stream_id in self._live:
            events.append(StreamReset(error.stream_id, error.code, by_peer=False))
        self._refuse(error.stream_id, error.code)
