# SPDX-License-Identifier: Apache-2.0
"""Bidirectional gRPC streams over HTTP/2 on accepted sockets, for one method.

grpc's servers cannot use a listening descriptor of another network namespace, and ADS needs a small
part of gRPC: messages with a length prefix on one stream (docs/decisions/0031). Source: the gRPC
repository, doc/PROTOCOL-HTTP2.md.

Any process of a gateway pod can connect. Connections, streams and messages are bounded; what a
client sends can only end its own connection.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Protocol

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import structlog

MAX_STREAMS = 4  # open ones of a connection; Envoy has one
MAX_REQUESTS = 256  # streams in the life of a connection
MAX_MESSAGE_BYTES = 4 << 20  # of a client; the first request of 20,000 resources has 2 MB
WINDOW_BYTES = 1 << 20  # of a stream
MAX_SEND_BYTES = 64 << 20  # that a client does not read
MAX_HEADER_BYTES = 16 << 10  # of a request
MAX_INCOMPLETE_BYTES = 128 << 10  # of frames that are not complete
CHUNK_BYTES = 16384  # of a DATA frame, RFC 9113, 6.5.2

_SETTINGS = {
    h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
    h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
    h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
}
_PREFIX = struct.Struct(">BI")  # compressed flag, length
_OK, _RESOURCE_EXHAUSTED, _UNIMPLEMENTED, _INTERNAL = 0, 8, 12, 13  # grpc status codes

log = structlog.get_logger()


class Stream(Protocol):
    """The application's side of a stream."""

    def receive(self, message: bytes) -> None:
        """Handle a message of the client. Raises ValueError to end the stream."""
        ...

    def closed(self) -> None:
        """The stream has ended."""
        ...


# Makes the application's side of a stream from the function that sends a message.
StreamFactory = Callable[[Callable[[bytes], None]], Stream]


class _OpenStream:
    def __init__(self, number: int) -> None:
        self.number = number
        self.application: Stream | None = None
        self.received = bytearray()
        self.to_send = bytearray()


class GrpcConnection(asyncio.Protocol):
    """One connection. `method` is the path of the only method."""

    def __init__(
        self,
        method: str,
        make_stream: StreamFactory,
        on_open: Callable[[GrpcConnection], bool] = lambda _: True,
        on_close: Callable[[GrpcConnection], None] = lambda _: None,
    ) -> None:
        """`on_open` returns whether there is room for the connection."""
        self._method = method
        self._make_stream = make_stream
        self._on_open, self._on_close = on_open, on_close
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self._http = h2.connection.H2Connection(config)
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, _OpenStream] = {}
        self._requests = 0
        self._incomplete = 0  # bytes received since the last complete frame
        self._is_paused = False
        self._is_counted = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._is_counted = self._on_open(self)
        if not self._is_counted:
            transport.abort()
            return
        # not `update_settings`: the client would get both these and the default values
        self._http.local_settings = h2.settings.Settings(client=False, initial_values=_SETTINGS)
        self._http.initiate_connection()
        self._http.increment_flow_control_window(WINDOW_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._http.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            log.debug("xds connection failed", error=str(error))
            self._flush()
            self.close()
            return
        # h2 buffers a frame before it checks the length that its header claims
        self._incomplete = 0 if events else self._incomplete + len(data)
        if self._incomplete > MAX_INCOMPLETE_BYTES:
            self.close()
            return
        for event in events:
            self._handle(event)
        self._send_queued()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._send_queued()

    def connection_lost(self, exc: Exception | None) -> None:
        for number in list(self._streams):
            self._ended(number)
        if self._is_counted:
            self._is_counted = False
            self._on_close(self)

    # For the owner

    def close(self) -> None:
        """Close the connection with all streams."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    # Events

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._requested(event)
        elif isinstance(event, h2.events.DataReceived):
            self._received(event)
        elif isinstance(event, h2.events.StreamEnded):
            if event.stream_id in self._streams:
                self._finish(event.stream_id, _OK, "")
        elif isinstance(event, h2.events.StreamReset):
            if event.stream_id is not None:
                self._ended(event.stream_id)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.close()

    def _requested(self, event: h2.events.RequestReceived) -> None:
        number = event.stream_id
        headers = dict(event.headers or ())
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            self.close()
            return
        is_grpc = bytes(headers.get(b"content-type", b"")).startswith(b"application/grpc")
        if number is None or headers.get(b":method") != b"POST" or not is_grpc:
            self.close()
            return
        if headers.get(b":path") != self._method.encode():
            self._reply(number, _UNIMPLEMENTED, "only delta ADS is served", end=True)
            return
        stream = self._streams[number] = _OpenStream(number)
        self._reply(number, _OK, "", end=False)
        stream.application = self._make_stream(lambda message: self._send(number, message))

    def _received(self, event: h2.events.DataReceived) -> None:
        number, data = event.stream_id, event.data or b""
        stream = self._streams.get(number) if number is not None else None
        if stream is None or number is None:
            return
        self._http.acknowledge_received_data(event.flow_controlled_length or 0, number)
        stream.received += data
        try:
            while (message := _next_message(stream.received)) is not None:
                if stream.application is not None:
                    stream.application.receive(message)
                if number not in self._streams:
                    return
        except ValueError as error:
            log.warning("xds stream closed", reason=str(error)[:256])
            self._finish(number, _RESOURCE_EXHAUSTED, str(error))
        except Exception as error:  # a defect must not end the process
            log.error("xds stream failed", exc_info=error)
            self._finish(number, _INTERNAL, "internal error")

    # Sending

    def _send(self, number: int, message: bytes) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.to_send += _PREFIX.pack(0, len(message))
        stream.to_send += message
        if len(stream.to_send) > MAX_SEND_BYTES:
            log.warning("xds stream closed", reason="the client does not read")
            self.close()
            return
        self._send_queued()

    def _send_queued(self) -> None:
        """Send what flow control and the socket allow."""
        for stream in list(self._streams.values()):
            sent = 0
            while sent < len(stream.to_send) and not self._is_paused:
                try:
                    room = self._http.local_flow_control_window(stream.number)
                except h2.exceptions.ProtocolError:
                    break
                size = min(room, CHUNK_BYTES, len(stream.to_send) - sent)
                if size <= 0:
                    break
                chunk = bytes(stream.to_send[sent : sent + size])
                self._http.send_data(stream.number, chunk)
                sent += size
                self._flush()
            del stream.to_send[:sent]
        self._flush()

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _reply(self, number: int, status: int, message: str, *, end: bool) -> None:
        headers = [(":status", "200"), ("content-type", "application/grpc")]
        if end:
            headers += [("grpc-status", str(status)), ("grpc-message", _printable(message))]
        self._http.send_headers(number, headers, end_stream=end)

    def _finish(self, number: int, status: int, message: str) -> None:
        """End a stream with trailers; data that is not sent yet is dropped."""
        trailers = [("grpc-status", str(status)), ("grpc-message", _printable(message))]
        try:
            self._http.send_headers(number, trailers, end_stream=True)
        except h2.exceptions.ProtocolError:
            self.close()
        self._ended(number)

    def _ended(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None and stream.application is not None:
            stream.application.closed()


def _next_message(received: bytearray) -> bytes | None:
    """Take the first complete message. Raises ValueError."""
    if len(received) < _PREFIX.size:
        return None
    compressed, length = _PREFIX.unpack_from(received)
    if compressed or length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes (compressed: {compressed})")
    end = _PREFIX.size + length
    if len(received) < end:
        return None
    message = bytes(received[_PREFIX.size : end])
    del received[:end]
    return message


def _printable(text: str) -> str:
    return "".join(each if " " <= each <= "~" and each != "%" else "_" for each in text)[:256]
