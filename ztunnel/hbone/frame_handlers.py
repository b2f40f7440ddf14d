# SPDX-License-Identifier: Apache-2.0
"""What each received frame does to the state of a connection, and the events it causes.

Handlers raise `StreamError` or `H2ConnectionError` when the peer breaks the protocol.
"""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.hbone import constants, frames
from ztunnel.hbone.connection_state import ConnectionState
from ztunnel.hbone.errors import ErrorCode, H2ConnectionError, StreamError
from ztunnel.hbone.events import (
    DataReceived,
    Event,
    GoAway,
    Header,
    PongReceived,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamEnded,
    StreamReset,
    WindowOpened,
)
from ztunnel.hbone.frames import ACK, FrameType
from ztunnel.hbone.headers import (
    MalformedError,
    check_trailers,
    decode_plain,
    parse_request,
    parse_response,
)
from ztunnel.hbone.parsed_frames import DataPiece, Frame, HeaderBlock
from ztunnel.hbone.streams import ClosedReason, Stream


class FrameHandlers(ConnectionState):
    """One handler for each type of frame."""

    def _count_reset(self) -> None:
        if not self._resets.spend(self._now):
            raise H2ConnectionError(
                ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset or refused"
            )

    def _count_overhead_frame(self) -> None:
        if not self._overhead_frames.spend(self._now):
            raise H2ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without payload")

    def _count_late_frame(self, stream_id: int) -> None:
        """Of a closed stream. Raises H2ConnectionError if it was never opened, or for a flood."""
        self._require_closed(stream_id)
        if not self._streams.spend_late_frame():
            self._count_overhead_frame()

    def _require_closed(self, stream_id: int) -> ClosedReason:
        """Why an unknown stream is closed; raises H2ConnectionError if it was never opened."""
        closed = self._streams.closed_reason(stream_id)
        if closed is ClosedReason.IDLE:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, f"frame on idle stream {stream_id}")
        return closed

    # DATA

    def _on_data(self, piece: DataPiece, events: list[Event]) -> None:
        if piece.charge:
            self._receive_window.charge(piece.charge)
        stream_id = piece.stream_id
        stream = self._live.get(stream_id)
        if stream is None or not stream.remote_open or not (stream.answered or self._is_server):
            self._on_unexpected_data(piece, stream)
            return
        stream.receive_window.charge(piece.charge)
        if piece.padding:
            self.consumed(stream_id, piece.padding)
        if len(piece.payload):
            events.append(DataReceived(stream_id, piece.payload))
        elif not piece.last:
            self._count_overhead_frame()
        if piece.last:
            self._on_end(stream, events)

    def _on_unexpected_data(self, piece: DataPiece, stream: Stream | None) -> None:
        self._credit_connection(len(piece.payload) + piece.padding)
        if stream is None:
            if self._require_closed(piece.stream_id) is ClosedReason.CLOSED:
                raise H2ConnectionError(
                    ErrorCode.STREAM_CLOSED, f"DATA on closed stream {piece.stream_id}"
                )
            if len(piece.payload) < constants.SMALL_DATA_BYTES and not piece.last:
                self._count_late_frame(piece.stream_id)
            return
        if not stream.remote_open:
            raise StreamError(piece.stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        raise StreamError(piece.stream_id, ErrorCode.PROTOCOL_ERROR, "DATA before the response")

    def _on_end(self, stream: Stream, events: list[Event]) -> None:
        self._streams.close_remote(stream)
        events.append(StreamEnded(stream.stream_id))

    # HEADERS

    def _on_headers(self, unit: HeaderBlock, events: list[Event]) -> None:
        headers = decode_plain(unit.block)
        if headers is None:
            if not self._hpack_bytes.spend(self._now, len(unit.block)):
                raise H2ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many compressed headers")
            headers = self._decoder.decode(unit.block)  # always: it updates the HPACK table
        else:
            self._decoder.check_size(headers)
        stream = self._live.get(unit.stream_id)
        try:
            if stream is None:
                self._on_headers_without_stream(unit, headers, events)
            elif not stream.remote_open:
                raise StreamError(
                    unit.stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM"
                )
            elif self._is_server or stream.answered:
                self._on_trailers(stream, unit, headers, events)
            else:
                self._on_response(stream, unit, headers, events)
        except MalformedError as error:
            raise StreamError(unit.stream_id, ErrorCode.PROTOCOL_ERROR, str(error)) from None

    def _on_headers_without_stream(
        self, unit: HeaderBlock, headers: list[Header], events: list[Event]
    ) -> None:
        closed = self._streams.closed_reason(unit.stream_id)
        if closed is ClosedReason.RESET_LOCALLY:
            self._count_overhead_frame()
        elif closed is ClosedReason.CLOSED:
            raise H2ConnectionError(
                ErrorCode.STREAM_CLOSED, f"HEADERS on closed stream {unit.stream_id}"
            )
        elif not self._is_server or not unit.stream_id & 1:
            raise H2ConnectionError(
                ErrorCode.PROTOCOL_ERROR,
                f"HEADERS on stream {unit.stream_id}: the peer may not open it",
            )
        elif self._goaway_sent is not None or len(self._live) >= self._max_streams:
            self._count_reset()
            self._refuse(unit.stream_id, ErrorCode.REFUSED_STREAM)
        else:
            self._on_request(unit, headers, events)

    def _on_request(self, unit: HeaderBlock, headers: list[Header], events: list[Event]) -> None:
        request = parse_request(headers, extended_connect=self._extended_connect)
        stream = self._streams.open(unit.stream_id, self._peer.initial_window)
        stream.tunnel = request.method == b"CONNECT"
        events.append(
            RequestReceived(
                unit.stream_id,
                request.method,
                request.authority,
                request.fields,
                request.protocol,
                request.path,
            )
        )
        if unit.end_stream:
            self._on_end(stream, events)

    def _on_response(
        self, stream: Stream, unit: HeaderBlock, headers: list[Header], events: list[Event]
    ) -> None:
        status, fields = parse_response(headers)
        if status < 200:
            if unit.end_stream:
                raise MalformedError(f"the stream ends with interim response {status}")
            self._count_overhead_frame()
            return
        stream.answered = True
        stream.tunnel = status < 300
        events.append(ResponseReceived(unit.stream_id, status, fields))
        if unit.end_stream:
            self._on_end(stream, events)

    def _on_trailers(
        self, stream: Stream, unit: HeaderBlock, headers: list[Header], events: list[Event]
    ) -> None:
        if stream.tunnel:
            raise MalformedError("HEADERS inside a tunnel")  # RFC 9113 8.5
        if not unit.end_stream:
            raise MalformedError("trailers without END_STREAM")
        check_trailers(headers)
        self._on_end(stream, events)

    # Other frames

    def _on_frame(self, frame: Frame, events: list[Event]) -> None:
        handler = _HANDLERS.get(frame.kind)
        if handler is None:  # PRIORITY and unknown frames: ignored, RFC 9113 5.3.2 and 5.5
            self._count_overhead_frame()
        else:
            handler(self, frame, events)

    def _on_window_update(self, frame: Frame, events: list[Event]) -> None:
        increment = int.from_bytes(frame.payload, "big") & constants.MAX_WINDOW_BYTES
        stream_id = frame.stream_id
        window = self._send_window
        if stream_id:
            stream = self._live.get(stream_id)
            if stream is None:
                self._count_late_frame(stream_id)
                return
            window = stream.send_window
        try:
            if not increment:
                raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            opened = window.widen(increment)
        except H2ConnectionError as error:
            if stream_id:
                raise StreamError(stream_id, error.code, error.reason) from None
            raise
        if opened:
            events.append(WindowOpened(stream_id))

    def _on_reset(self, frame: Frame, events: list[Event]) -> None:
        stream = self._live.get(frame.stream_id)
        if stream is None:
            self._count_late_frame(frame.stream_id)
            return
        if self._is_server and not stream.answered:
            self._count_reset()
        self._streams.reset_by_peer(frame.stream_id)
        code = int.from_bytes(frame.payload, "big")
        events.append(StreamReset(frame.stream_id, code))

    def _on_ping(self, frame: Frame, events: list[Event]) -> None:
        self._count_overhead_frame()
        if frame.flags & ACK:
            events.append(PongReceived(frame.payload))
        else:
            self._out += frames.ping(frame.payload, ack=True)

    def _on_settings(self, frame: Frame, events: list[Event]) -> None:
        self._count_overhead_frame()
        if frame.flags & ACK:
            return
        if not self._settings_received:
            self._settings_received = True
            self._peer.on_first_settings()
        change = self._peer.apply(frames.parse_settings(frame.payload))
        if change:
            for stream in self._live.values():
                if stream.send_window.widen(change):
                    events.append(WindowOpened(stream.stream_id))
        self._out += frames.settings_ack()
        events.append(SettingsReceived())

    def _on_goaway(self, frame: Frame, events: list[Event]) -> None:
        last = int.from_bytes(frame.payload[:4], "big") & constants.MAX_STREAM_ID
        if self._goaway_received is not None and last > self._goaway_received:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "GOAWAY raises the last stream ID")
        self._count_overhead_frame()
        self._goaway_received = last
        events.append(GoAway(last, int.from_bytes(frame.payload[4:], "big")))
        if self._is_server:
            return
        for stream_id in [stream_id for stream_id in self._live if stream_id > last]:
            self._streams.reset_local(stream_id)
            events.append(StreamReset(stream_id, ErrorCode.REFUSED_STREAM))


_HANDLERS: dict[int, Callable[[FrameHandlers, Frame, list[Event]], None]] = {
    FrameType.WINDOW_UPDATE: FrameHandlers._on_window_update,
    FrameType.RST_STREAM: FrameHandlers._on_reset,
    FrameType.PING: FrameHandlers._on_ping,
    FrameType.SETTINGS: FrameHandlers._on_settings,
    FrameType.GOAWAY: FrameHandlers._on_goaway,
}
