# SPDX-License-Identifier: Apache-2.0
"""One HBONE connection's HTTP/2: octets in, events out, octets out.

No socket, no clock. The caller owns the transport:

    conn = Connection(Role.CLIENT)
    send(conn.take_output())                      # preface and SETTINGS
    sid = conn.request([(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80"), ...])
    send(conn.take_output())
    for event in conn.receive(memoryview(chunk), now): ...

Payload is never copied. To send it, read the application's octets into a buffer at offset 9
and let the codec put the frame header in front of them:

    n = app.recv_into(buffer[9 : 9 + conn.sendable(sid)])
    conn.write_data_header_into(buffer, 0, sid, n)
    send(conn.take_output())
    send(buffer[: 9 + n])

Order is the caller's: whatever `take_output` holds must go out before a DATA frame that was
made later, and nothing may come between a frame header and its payload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum

from ztunnel.hbone import constants, frames
from ztunnel.hbone.errors import ApiMisuseError, ErrorCode, H2ConnectionError, StreamError
from ztunnel.hbone.events import (
    ConnectionFailed,
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
from ztunnel.hbone.flow_control import HeldCredit, ReceiveWindow, SendWindow
from ztunnel.hbone.frame_reader import FrameReader
from ztunnel.hbone.frames import ACK, HEAD, FrameType, Setting
from ztunnel.hbone.headers import (
    NO_DYNAMIC_TABLE,
    HeaderDecoder,
    MalformedError,
    check_trailers,
    encode,
    encode_response,
    parse_request,
    parse_response,
)
from ztunnel.hbone.parsed_frames import DataPiece, Frame, HeaderBlock
from ztunnel.hbone.peer_settings import PeerSettings
from ztunnel.hbone.rate_limit import Budget
from ztunnel.hbone.streams import ClosedReason, Stream, StreamTable


class Role(Enum):
    CLIENT = "client"  # opens streams by `request`
    SERVER = "server"  # answers them by `respond`


class Connection:
    """The state of one connection. All methods are for one thread.

    Methods that send raise `ApiMisuseError` if the caller breaks the protocol; nothing a peer
    sends makes any method raise.
    """

    def __init__(
        self,
        role: Role,
        *,
        stream_window: int = constants.STREAM_WINDOW,
        connection_window: int = constants.CONNECTION_WINDOW,
        max_frame_size: int = constants.MAX_FRAME_SIZE,
        max_header_list: int | None = None,
        max_streams: int = constants.MAX_CONCURRENT_STREAMS,
        extended_connect: bool = False,
    ) -> None:
        """The preface and SETTINGS are in the output at once.

        `max_header_list`: None takes the role's own, 16 KiB client, 64 KiB server.
        `max_streams`: how many the peer may have open (server). Windows and frame size are
        never below RFC 9113's defaults, as the peer uses those until it has read our SETTINGS.
        """
        if min(stream_window, connection_window) < constants.DEFAULT_WINDOW:
            raise ApiMisuseError(f"windows start at {constants.DEFAULT_WINDOW} octets")
        self._is_server = role is Role.SERVER
        if max_header_list is None:
            client, server = constants.CLIENT_MAX_HEADER_LIST, constants.SERVER_MAX_HEADER_LIST
            max_header_list = server if self._is_server else client
        self._max_streams = max_streams
        self._extended_connect = extended_connect
        self._reader = FrameReader(
            max_frame=max_frame_size, max_block=max_header_list, expect_preface=self._is_server
        )
        self._decoder = HeaderDecoder(max_header_list)
        self._streams = StreamTable(stream_window)
        self._live = self._streams.live
        self._send_window = SendWindow(constants.DEFAULT_WINDOW)
        self._receive_window = ReceiveWindow(connection_window)
        self._held = HeldCredit(constants.HELD_LIMIT)
        self._peer = PeerSettings(is_server=not self._is_server)
        self._peer_settled = False  # its first SETTINGS came
        self._chatter = Budget(constants.CHATTER_BURST, constants.CHATTER_PER_SECOND)
        self._resets = Budget(constants.RESET_BURST, constants.RESET_PER_SECOND)
        self._now = 0.0
        self._out = bytearray()
        self._block_prefix = NO_DYNAMIC_TABLE  # only the first block carries it
        self._goaway_sent: int | None = None  # the last stream id it named
        self._goaway_received: int | None = None
        self._failed = False
        self._greet(stream_window, connection_window, max_frame_size, max_header_list)

    def _greet(self, stream: int, connection: int, frame_size: int, header_list: int) -> None:
        values = [
            (Setting.INITIAL_WINDOW_SIZE, stream),
            (Setting.MAX_FRAME_SIZE, frame_size),
            (Setting.MAX_HEADER_LIST_SIZE, header_list),
        ]
        if self._is_server:
            values.append((Setting.MAX_CONCURRENT_STREAMS, self._max_streams))
            if self._extended_connect:
                values.append((Setting.ENABLE_CONNECT_PROTOCOL, 1))
        else:
            values.append((Setting.ENABLE_PUSH, 0))
            self._out += frames.PREFACE
        self._out += frames.settings_frame(values)
        if connection > constants.DEFAULT_WINDOW:
            self._out += frames.window_update(0, connection - constants.DEFAULT_WINDOW)

    # What is

    @property
    def open_streams(self) -> int:
        """Streams not yet closed both ways."""
        return len(self._live)

    @property
    def can_open_stream(self) -> bool:
        """Client: whether `request` is allowed now (peer's limit, GOAWAY, ids left)."""
        return (
            not self._is_server
            and not self._failed
            and self._goaway_sent is None
            and self._goaway_received is None
            and len(self._live) < self._peer.max_streams
            and self._streams.next_id <= constants.LARGEST_STREAM_ID
        )

    @property
    def failed(self) -> bool:
        """`ConnectionFailed` was reported: send the output and close."""
        return self._failed

    @property
    def is_greeted(self) -> bool:
        """The peer's first SETTINGS came: it does speak HTTP/2."""
        return self._peer_settled

    @property
    def peer_extended_connect(self) -> bool:
        """Client: the peer takes extended CONNECT (RFC 8441)."""
        return self._peer.extended_connect

    @property
    def peer_settled(self) -> bool:
        """Whether the peer's SETTINGS came: before, `peer_extended_connect` says nothing."""
        return self._peer_settled

    # What to send

    @property
    def has_output(self) -> bool:
        """Whether `take_output` would return anything."""
        return bool(self._out)

    def take_output(self) -> bytes:
        """All control frames queued since the last call, to be sent in this order."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def request(
        self, headers: Iterable[Header], *, head: bytes = b"", end_stream: bool = False
    ) -> int:
        """Client: open a stream; returns its id. Pseudo-header fields come first.

        `head`: fields that go before `headers`, encoded already (`headers.encode`).
        Raises MisuseError unless `can_open_stream`.
        """
        if not self.can_open_stream:
            raise ApiMisuseError("no stream may be opened now: ask can_open_stream first")
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
        """Server: send the final response. Does nothing when the stream is gone already.

        To refuse: `end_stream=True`, then `reset(stream_id, NO_ERROR)` lets go of it.
        """
        stream = self._live.get(stream_id)
        if stream is None:
            return
        if not self._is_server or stream.answered or not 200 <= status <= 599:
            raise ApiMisuseError(f"response {status} on stream {stream_id}: not now, or not final")
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
        """Octets that one DATA frame may carry now; 0 when blocked, ended or gone.

        When 0, wait for `WindowOpened` of the stream or of 0.
        """
        stream = self._live.get(stream_id)
        return 0 if stream is None else self._room(stream)

    def window(self, stream_id: int) -> int:
        """Octets that several DATA frames may carry now: `sendable` without its frame limit."""
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
        """The 9 octets for a DATA frame of `length` ≤ `sendable`; takes it from the windows."""
        header = bytearray(constants.FRAME_HEADER)
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
        """`data_frame_header`, written to `buffer[offset:offset + 9]`."""
        stream = self._live.get(stream_id)
        if stream is None or not stream.local_open or (self._is_server and not stream.answered):
            raise ApiMisuseError(f"stream {stream_id} is not answered, ended or gone")
        if length > self._room(stream) or (length <= 0 and not end_stream):
            raise ApiMisuseError(f"DATA of {length} octets on stream {stream_id}: not sendable")
        HEAD.pack_into(buffer, offset, length >> 8, length & 0xFF, 0, end_stream, stream_id)
        stream.send_window.available -= length
        self._send_window.available -= length
        if end_stream:
            self._streams.close_local(stream)

    def end_stream(self, stream_id: int) -> None:
        """Close our half: an empty DATA frame with END_STREAM. Nothing if ended or gone."""
        stream = self._live.get(stream_id)
        if stream is not None and stream.local_open:
            self._out += self.data_frame_header(stream_id, 0, end_stream=True)

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """End the stream at once, both ways. Nothing if it is gone. No event follows."""
        if stream_id in self._live:
            self._refuse(stream_id, code)

    def _refuse(self, stream_id: int, code: ErrorCode) -> None:
        self._out += frames.rst_stream(stream_id, code)
        self._streams.forgive(stream_id)

    def consumed(self, stream_id: int, n: int) -> None:
        """Give the peer `n` octets of credit back, once they have left our hands.

        Owed once for every octet of every `DataReceived`, also when it was thrown away
        and also after the stream ended or was reset: the connection's window needs it.
        """
        if self._failed:
            return
        increment = self._receive_window.give_back(n)  # in line: once for each piece of payload
        if increment:
            self._out += frames.window_update(0, increment)
        stream = self._live.get(stream_id)
        if stream is not None and stream.remote_open:
            increment = stream.receive_window.give_back(n)
            if increment:
                self._out += frames.window_update(stream_id, increment)

    def hold(self, n: int) -> None:
        """Say that `n` received octets wait for a slow reader: other streams need not wait too.

        `consumed_held` is owed for them instead of `consumed`.
        """
        if not self._failed:
            self._credit_connection(self._held.add(n))

    def consumed_held(self, stream_id: int, n: int) -> None:
        """`consumed`, for octets of which `hold` was told."""
        if not self._failed:
            self._credit_connection(self._held.remove(n))
            self._credit_stream(stream_id, n)

    def _credit_stream(self, stream_id: int, n: int) -> None:
        stream = self._live.get(stream_id)
        if stream is not None and stream.remote_open:
            increment = stream.receive_window.give_back(n)
            if increment:
                self._out += frames.window_update(stream_id, increment)

    def _credit_connection(self, n: int) -> None:
        increment = self._receive_window.give_back(n)
        if increment:
            self._out += frames.window_update(0, increment)

    def ping(self, payload: bytes) -> None:
        """Send PING with these 8 octets; `PongReceived` brings them back."""
        if len(payload) != 8:
            raise ApiMisuseError(f"PING carries 8 octets, not {len(payload)}")
        self._out += frames.ping(payload)

    def goaway(self, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Take no new streams; those that are open go on. The peer's newer ones are refused."""
        if self._goaway_sent is None:
            self._goaway_sent = max(self._streams.highest, 0) if self._is_server else 0
        self._out += frames.goaway(self._goaway_sent, code)

    # What came

    def receive(self, data: memoryview, now: float) -> list[Event]:
        """Take a chunk as it came from the transport; `now` is monotonic seconds.

        The whole chunk is used. A DATA frame's payload is passed on as it comes, without
        waiting for the frame's end. The time serves only the flood limits.
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
            if len(self._out) > constants.MAX_QUEUED_OUTPUT:
                raise H2ConnectionError(
                    ErrorCode.ENHANCE_YOUR_CALM, "the peer does not read our answers"
                )
        except H2ConnectionError as error:  # a name of its own: mypyc keeps one type for each name
            self._fail(error, events)
        return events

    def _fail(self, error: H2ConnectionError, events: list[Event]) -> None:
        self.goaway(error.code)
        self._failed = True
        self._live.clear()
        events.append(ConnectionFailed(error.code, error.reason))

    def _on_stream_error(self, error: StreamError, events: list[Event]) -> None:
        self._spend_reset()
        if error.stream_id in self._live:
            events.append(StreamReset(error.stream_id, error.code, by_peer=False))
        self._refuse(error.stream_id, error.code)

    def _spend_reset(self) -> None:
        if not self._resets.spend(self._now):
            raise H2ConnectionError(
                ErrorCode.ENHANCE_YOUR_CALM, "too many streams that came to nothing"
            )

    def _spend_chatter(self) -> None:
        if not self._chatter.spend(self._now):
            raise H2ConnectionError(
                ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry nothing"
            )

    def _absent(self, stream_id: int) -> ClosedReason:
        """Why there is no such stream; raises PeerError if there never was one."""
        absent = self._streams.why_absent(stream_id)
        if absent is ClosedReason.IDLE:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, f"frame on idle stream {stream_id}")
        return absent

    # DATA

    def _on_data(self, piece: DataPiece, events: list[Event]) -> None:
        if piece.charge:
            self._receive_window.charge(piece.charge)
        stream_id = piece.stream_id
        stream = self._live.get(stream_id)
        if stream is None or not stream.remote_open or not (stream.answered or self._is_server):
            self._on_unwanted_data(piece, stream)
            return
        stream.receive_window.charge(piece.charge)
        if piece.padding:
            self.consumed(stream_id, piece.padding)
        if len(piece.payload):
            events.append(DataReceived(stream_id, piece.payload))
        elif not piece.last:
            self._spend_chatter()
        if piece.last:
            self._on_end(stream, events)

    def _on_unwanted_data(self, piece: DataPiece, stream: Stream | None) -> None:
        self._credit_connection(len(piece.payload) + piece.padding)
        if stream is None:
            if self._absent(piece.stream_id) is ClosedReason.CLOSED:
                raise H2ConnectionError(
                    ErrorCode.STREAM_CLOSED, f"DATA on closed stream {piece.stream_id}"
                )
            if not len(piece.payload) and not piece.last:
                self._spend_chatter()
            return
        if not stream.remote_open:
            raise StreamError(piece.stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        raise StreamError(piece.stream_id, ErrorCode.PROTOCOL_ERROR, "DATA before the response")

    def _on_end(self, stream: Stream, events: list[Event]) -> None:
        self._streams.close_remote(stream)
        events.append(StreamEnded(stream.stream_id))

    # HEADERS

    def _on_headers(self, unit: HeaderBlock, events: list[Event]) -> None:
        headers = self._decoder.decode(unit.block)  # always: hpack's table depends on it
        stream = self._live.get(unit.stream_id)
        try:
            if stream is None:
                self._on_headers_of_no_stream(unit, headers, events)
            elif not stream.remote_open:
                raise StreamError(unit.stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after the end")
            elif self._is_server or stream.answered:
                self._on_trailers(stream, unit, headers, events)
            else:
                self._on_response(stream, unit, headers, events)
        except MalformedError as error:
            raise StreamError(unit.stream_id, ErrorCode.PROTOCOL_ERROR, str(error)) from None

    def _on_headers_of_no_stream(
        self, unit: HeaderBlock, headers: list[Header], events: list[Event]
    ) -> None:
        absent = self._streams.why_absent(unit.stream_id)
        if absent is ClosedReason.FORGIVEN:
            self._spend_chatter()
        elif absent is ClosedReason.CLOSED:
            raise H2ConnectionError(
                ErrorCode.STREAM_CLOSED, f"HEADERS on closed stream {unit.stream_id}"
            )
        elif not self._is_server or not unit.stream_id & 1:
            raise H2ConnectionError(
                ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {unit.stream_id}: not its to open"
            )
        elif self._goaway_sent is not None or len(self._live) >= self._max_streams:
            self._spend_reset()
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
            self._spend_chatter()
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

    # All else

    def _on_frame(self, frame: Frame, events: list[Event]) -> None:
        handler = _HANDLERS.get(frame.kind)
        if handler is None:  # PRIORITY and unknown frames: ignored, RFC 9113 5.3.2 and 5.5
            self._spend_chatter()
        else:
            handler(self, frame, events)

    def _on_window_update(self, frame: Frame, events: list[Event]) -> None:
        increment = int.from_bytes(frame.payload, "big") & constants.LARGEST_WINDOW
        stream_id = frame.stream_id
        window = self._send_window
        if stream_id:
            stream = self._live.get(stream_id)
            if stream is None:
                self._absent(stream_id)  # crossed with the stream's end: normal, costs nothing
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
            self._absent(frame.stream_id)  # crossed with the stream's end
            return
        if self._is_server and not stream.answered:
            self._spend_reset()
        self._streams.drop(frame.stream_id)
        code = int.from_bytes(frame.payload, "big")
        events.append(StreamReset(frame.stream_id, code))

    def _on_ping(self, frame: Frame, events: list[Event]) -> None:
        self._spend_chatter()
        if frame.flags & ACK:
            events.append(PongReceived(frame.payload))
        else:
            self._out += frames.ping(frame.payload, ack=True)

    def _on_settings(self, frame: Frame, events: list[Event]) -> None:
        self._spend_chatter()
        if frame.flags & ACK:
            return
        if not self._peer_settled:
            self._peer_settled = True
            self._peer.first()
        change = self._peer.apply(frames.parse_settings(frame.payload))
        if change:
            for stream in self._live.values():
                if stream.send_window.widen(change):
                    events.append(WindowOpened(stream.stream_id))
        self._out += frames.settings_ack()
        events.append(SettingsReceived())

    def _on_goaway(self, frame: Frame, events: list[Event]) -> None:
        last = int.from_bytes(frame.payload[:4], "big") & constants.LARGEST_STREAM_ID
        if self._goaway_received is not None and last > self._goaway_received:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "GOAWAY takes back an earlier one")
        self._spend_chatter()
        self._goaway_received = last
        events.append(GoAway(last, int.from_bytes(frame.payload[4:], "big")))
        if self._is_server:
            return
        for stream_id in [stream_id for stream_id in self._live if stream_id > last]:
            self._streams.forgive(stream_id)
            events.append(StreamReset(stream_id, ErrorCode.REFUSED_STREAM))


_HANDLERS: dict[int, Callable[[Connection, Frame, list[Event]], None]] = {
    FrameType.WINDOW_UPDATE: Connection._on_window_update,
    FrameType.RST_STREAM: Connection._on_reset,
    FrameType.PING: Connection._on_ping,
    FrameType.SETTINGS: Connection._on_settings,
    FrameType.GOAWAY: Connection._on_goaway,
}
