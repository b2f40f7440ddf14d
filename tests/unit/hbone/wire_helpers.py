# SPDX-License-Identifier: Apache-2.0
"""Helpers for the codec's tests: connections after the preface, and a plain frame splitter.

The splitter is independent of the codec's frame reader.
"""

from __future__ import annotations

from ztunnel.hbone import frames, headers
from ztunnel.hbone.buffer_budget import BufferShare
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import ConnectionFailed, DataReceived, Event, Header
from ztunnel.hbone.frames import END_HEADERS, END_STREAM, FrameType

CONNECT: list[Header] = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]
GREETING = frames.PREFACE + frames.settings_frame([])


def greeted(role: Role, share: BufferShare | None = None, **options: int) -> Connection:
    """A connection whose peer has sent an empty SETTINGS and read all output."""
    connection = Connection(role, share=share, **options)  # type: ignore[arg-type]
    connection.receive(
        memoryview(GREETING if role is Role.SERVER else frames.settings_frame([])), 0
    )
    connection.take_output()
    return connection


def client_with_stream(status: int | None = None) -> Connection:
    """A client that opened stream 1; answered if `status` is given."""
    client = greeted(Role.CLIENT)
    assert client.request(CONNECT) == 1
    if status is not None:
        client.receive(memoryview(response(1, status)), 0)
    client.take_output()
    return client


def request(stream_id: int, fields: list[Header] | None = None, flags: int = END_HEADERS) -> bytes:
    block = headers.encode(CONNECT if fields is None else fields)
    return frames.frame(FrameType.HEADERS, flags, stream_id, block)


def raw_request(stream_id: int, fields: list[Header], flags: int = END_HEADERS) -> bytes:
    """A request that may violate any rule, which `headers.encode` would reject."""
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )
    return frames.frame(FrameType.HEADERS, flags, stream_id, block)


def response(stream_id: int, status: int, *, end: bool = False) -> bytes:
    block = headers.encode([(b":status", b"%d" % status)])
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frames.frame(FrameType.HEADERS, flags, stream_id, block)


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.frame(FrameType.DATA, flags, stream_id, payload)


def split(octets: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream id, payload) of each frame; a client preface is skipped."""
    octets = octets.removeprefix(frames.PREFACE)
    out = []
    while octets:
        length = int.from_bytes(octets[:3], "big")
        assert len(octets) >= 9 + length, "half a frame"
        stream_id = int.from_bytes(octets[5:9], "big")
        out.append((octets[3], octets[4], stream_id, octets[9 : 9 + length]))
        octets = octets[9 + length :]
    return out


def verdict(connection: Connection, events: list[Event]) -> tuple[str, int, ErrorCode | None]:
    """What the connection sent to its peer: ("goaway", 0, code), ("reset", id, code) or ("ok",...).

    A GOAWAY must be the last frame, be reported as ConnectionFailed, and say the same code.
    """
    sent = split(connection.take_output())
    for kind, _flags, _stream_id, payload in sent:
        if kind == FrameType.GOAWAY:
            code = ErrorCode(int.from_bytes(payload[4:8], "big"))
            last = events[-1]
            assert isinstance(last, ConnectionFailed)
            assert last.code == code
            assert sent[-1][0] == FrameType.GOAWAY
            assert connection.failed
            return "goaway", 0, code
    assert not connection.failed
    for kind, _flags, stream_id, payload in sent:
        if kind == FrameType.RST_STREAM:
            return "reset", stream_id, ErrorCode(int.from_bytes(payload, "big"))
    return "ok", 0, None


def payload_of(events: list[Event], stream_id: int = 1) -> bytes:
    return b"".join(
        bytes(event.payload)
        for event in events
        if isinstance(event, DataReceived) and event.stream_id == stream_id
    )
