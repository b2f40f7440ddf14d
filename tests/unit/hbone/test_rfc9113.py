# SPDX-License-Identifier: Apache-2.0
"""Each MUST of RFC 9113 that concerns a CONNECT-only endpoint: frames in, GOAWAY or RST out.

A table like the cases of h2spec. Every case is fed as a whole and octet by octet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.unit.hbone import wire_helpers
from tests.unit.hbone.wire_helpers import (
    client_with_stream,
    data,
    greeted,
    raw_request,
    request,
    response,
)
from ztunnel.hbone import constants, frames, headers
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PADDED,
    PREFACE,
    PRIORITY,
    FrameType,
    Setting,
    frame,
    goaway,
    ping,
    rst_stream,
    settings_frame,
    window_update,
)

E = ErrorCode
OK = ("ok", 0, None)


def fails(code: ErrorCode) -> tuple[str, int, ErrorCode | None]:
    return "goaway", 0, code


def resets(code: ErrorCode, stream_id: int = 1) -> tuple[str, int, ErrorCode | None]:
    return "reset", stream_id, code


def server() -> Connection:
    return greeted(Role.SERVER)


def fresh_server() -> Connection:
    connection = Connection(Role.SERVER)
    connection.take_output()
    return connection


def fresh_client() -> Connection:
    connection = Connection(Role.CLIENT)
    connection.take_output()
    return connection


def client() -> Connection:
    return greeted(Role.CLIENT)


def answering_server() -> Connection:
    """Stream 1 is open and answered."""
    connection = server()
    connection.receive(memoryview(request(1)), 0)
    connection.respond(1, 200)
    connection.take_output()
    return connection


def server_with_large_windows() -> Connection:
    """Stream 1 is open and answered."""
    connection = greeted(
        Role.SERVER,
        stream_window=constants.MAX_STREAM_WINDOW_BYTES,
        connection_window=constants.MAX_CONNECTION_WINDOW_BYTES,
    )
    connection.receive(memoryview(request(1)), 0)
    connection.respond(1, 200)
    connection.take_output()
    return connection


def server_after_end() -> Connection:
    """Stream 1 was closed by END_STREAM of both."""
    connection = answering_server()
    connection.receive(memoryview(data(1, b"", END_STREAM)), 0)
    connection.end_stream(1)
    connection.take_output()
    return connection


def server_after_our_reset() -> Connection:
    connection = answering_server()
    connection.reset(1, E.CANCEL)
    connection.take_output()
    return connection


def server_after_their_reset() -> Connection:
    connection = answering_server()
    connection.receive(memoryview(rst_stream(1, E.CANCEL)), 0)
    return connection


def tunnel_client() -> Connection:
    return client_with_stream(200)


def refused_client() -> Connection:
    return client_with_stream(503)


class Case(NamedTuple):
    name: str
    make: Callable[[], Connection]
    octets: bytes
    expected: tuple[str, int, ErrorCode | None]


METHOD, AUTHORITY = (b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")
SCHEME, PATH = (b":scheme", b"https"), (b":path", b"/")
LONG = struct.Struct(">L")
BLOCK = headers.encode(wire_helpers.CONNECT)
TRAILERS = raw_request(1, [(b"grpc-status", b"0")], END_HEADERS | END_STREAM)
UNKNOWN = 0x4B
WINDOW = constants.STREAM_WINDOW_BYTES


def setting(key: int, value: int) -> bytes:
    return settings_frame([(key, value)])


def bad(*fields: tuple[bytes, bytes]) -> bytes:
    return raw_request(1, list(fields))


CASES = [
    # 3.4 connection preface
    Case("wrong preface", fresh_server, b"GET / HTTP/1.1\r\n\r\n", fails(E.PROTOCOL_ERROR)),
    Case("preface is TLS", fresh_server, b"\x16\x03\x01\x02\x00", fails(E.PROTOCOL_ERROR)),
    Case(
        "preface differs at its end",
        fresh_server,
        PREFACE[:-1] + b"X",
        fails(E.PROTOCOL_ERROR),
    ),
    Case("first frame is PING", fresh_server, PREFACE + ping(b"8" * 8), fails(E.PROTOCOL_ERROR)),
    Case(
        "first frame is an ACK",
        fresh_server,
        PREFACE + frames.settings_ack(),
        fails(E.PROTOCOL_ERROR),
    ),
    Case("server's first frame is PING", fresh_client, ping(b"8" * 8), fails(E.PROTOCOL_ERROR)),
    Case("server sends a preface", fresh_client, PREFACE, fails(E.FRAME_SIZE_ERROR)),
    Case("valid greeting", fresh_server, wire_helpers.GREETING, OK),
    # 4.1 frame format
    Case("unknown type is ignored", server, frame(UNKNOWN, 0xFF, 0, b"x" * 100), OK),
    Case("unknown type on idle stream is ignored", server, frame(UNKNOWN, 0, 9, b"x"), OK),
    Case("unknown flags are ignored", server, frame(FrameType.PING, 0xFE, 0, b"8" * 8), OK),
    Case(
        "reserved bit is ignored",
        answering_server,
        frame(FrameType.WINDOW_UPDATE, 0, 0x8000_0001, LONG.pack(1)),
        OK,
    ),
    Case(
        "reserved bit of an increment is ignored",
        answering_server,
        window_update(1, 0x8000_0001),
        OK,
    ),
    # 4.2 frame size
    Case(
        "DATA beyond our maximum",
        answering_server,
        frames.HEAD.pack(0x1000, 1, FrameType.DATA, 0, 1),
        fails(E.FRAME_SIZE_ERROR),
    ),
    Case(
        "unknown frame beyond our maximum",
        server,
        frames.HEAD.pack(0xFFFF, 0xFF, UNKNOWN, 0, 0),
        fails(E.FRAME_SIZE_ERROR),
    ),
    Case(
        "DATA of our maximum",
        server_with_large_windows,
        data(1, bytes(constants.MAX_FRAME_BYTES)),
        OK,
    ),
    # 4.3 and 6.10 header blocks
    Case(
        "PING inside a header block",
        server,
        frame(FrameType.HEADERS, 0, 1, BLOCK) + ping(b"8" * 8),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "unknown frame inside a header block",
        server,
        frame(FrameType.HEADERS, 0, 1, BLOCK) + frame(UNKNOWN, 0, 1),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "HEADERS inside a header block",
        server,
        frame(FrameType.HEADERS, 0, 1, BLOCK) + request(3),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "CONTINUATION of another stream",
        server,
        frame(FrameType.HEADERS, 0, 1, BLOCK) + frame(FrameType.CONTINUATION, END_HEADERS, 3),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "CONTINUATION after END_HEADERS",
        server,
        request(1) + frame(FrameType.CONTINUATION, END_HEADERS, 1),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "CONTINUATION alone",
        server,
        frame(FrameType.CONTINUATION, END_HEADERS, 1, BLOCK),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "CONTINUATION on stream 0",
        server,
        frame(FrameType.CONTINUATION, END_HEADERS, 0, BLOCK),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "block in three frames",
        server,
        frame(FrameType.HEADERS, 0, 1, BLOCK[:5])
        + frame(FrameType.CONTINUATION, 0, 1, BLOCK[5:9])
        + frame(FrameType.CONTINUATION, END_HEADERS, 1, BLOCK[9:]),
        OK,
    ),
    Case(
        "endless CONTINUATION",
        server,
        frame(FrameType.HEADERS, 0, 1, BLOCK) + frame(FrameType.CONTINUATION, 0, 1) * 100,
        fails(E.ENHANCE_YOUR_CALM),
    ),
    Case(
        "block larger than our header list limit",
        server,
        frame(FrameType.HEADERS, 0, 1, bytes(constants.SERVER_MAX_HEADER_LIST_BYTES + 1)),
        fails(E.ENHANCE_YOUR_CALM),
    ),
    Case(
        "list larger than our limit, from a small block",
        server,
        frame(FrameType.HEADERS, END_HEADERS, 1, b"\x88" * 4096),
        fails(E.ENHANCE_YOUR_CALM),
    ),
    Case(
        "index beyond the tables",
        server,
        frame(FrameType.HEADERS, END_HEADERS, 1, b"\xff\x7f"),
        fails(E.COMPRESSION_ERROR),
    ),
    Case(
        "index 0",
        server,
        frame(FrameType.HEADERS, END_HEADERS, 1, b"\x80"),
        fails(E.COMPRESSION_ERROR),
    ),
    Case(
        "truncated literal",
        server,
        frame(FrameType.HEADERS, END_HEADERS, 1, BLOCK[:-1]),
        fails(E.COMPRESSION_ERROR),
    ),
    Case(
        "dynamic table larger than our limit",
        server,
        frame(FrameType.HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f" + BLOCK),
        fails(E.COMPRESSION_ERROR),
    ),
    Case(
        "table size update behind a field",
        server,
        frame(FrameType.HEADERS, END_HEADERS, 1, b"\x88\x20"),
        fails(E.COMPRESSION_ERROR),
    ),
    # 5.1 stream states
    Case("DATA on idle stream", server, data(1, b"x"), fails(E.PROTOCOL_ERROR)),
    Case("RST_STREAM on idle stream", server, rst_stream(1, 8), fails(E.PROTOCOL_ERROR)),
    Case("WINDOW_UPDATE on idle stream", server, window_update(1, 1), fails(E.PROTOCOL_ERROR)),
    Case(
        "PRIORITY on idle stream",
        server,
        frame(FrameType.PRIORITY, 0, 1, bytes(5)),
        OK,
    ),
    Case(
        "DATA after END_STREAM",
        answering_server,
        data(1, b"", END_STREAM) + data(1, b"x"),
        resets(E.STREAM_CLOSED),
    ),
    Case(
        "HEADERS after END_STREAM",
        answering_server,
        data(1, b"", END_STREAM) + request(1),
        resets(E.STREAM_CLOSED),
    ),
    Case(
        "WINDOW_UPDATE after END_STREAM",
        answering_server,
        data(1, b"", END_STREAM) + window_update(1, 1),
        OK,
    ),
    Case(
        "RST_STREAM after END_STREAM",
        answering_server,
        data(1, b"", END_STREAM) + rst_stream(1, 8),
        OK,
    ),
    Case("DATA on closed stream", server_after_end, data(1, b"x"), fails(E.STREAM_CLOSED)),
    Case("HEADERS on closed stream", server_after_end, request(1), fails(E.STREAM_CLOSED)),
    Case("WINDOW_UPDATE on closed stream", server_after_end, window_update(1, 1), OK),
    Case("RST_STREAM on closed stream", server_after_end, rst_stream(1, 8), OK),
    Case(
        "DATA after the peer's own RST_STREAM",
        server_after_their_reset,
        data(1, b"x"),
        fails(E.STREAM_CLOSED),
    ),
    Case("late DATA after our RST_STREAM", server_after_our_reset, data(1, b"x", END_STREAM), OK),
    Case("late HEADERS after our RST_STREAM", server_after_our_reset, TRAILERS, OK),
    Case(
        "late WINDOW_UPDATE after our RST_STREAM", server_after_our_reset, window_update(1, 1), OK
    ),
    Case("late RST_STREAM after our RST_STREAM", server_after_our_reset, rst_stream(1, 8), OK),
    # 5.1.1 stream identifiers
    Case("client opens an even stream", server, request(2), fails(E.PROTOCOL_ERROR)),
    Case("client opens stream 0", server, request(0), fails(E.PROTOCOL_ERROR)),
    Case("stream IDs decrease", server, request(5) + request(3), fails(E.STREAM_CLOSED)),
    Case("stream IDs skip numbers", server, request(5) + request(9), OK),
    Case("skipped ID is closed", server, request(5) + data(3, b"x"), fails(E.STREAM_CLOSED)),
    Case("server opens a stream", client, response(2, 200), fails(E.PROTOCOL_ERROR)),
    Case("server answers an idle stream", client, response(1, 200), fails(E.PROTOCOL_ERROR)),
    # 6.1 DATA
    Case("DATA on stream 0", answering_server, data(0, b"x"), fails(E.PROTOCOL_ERROR)),
    Case(
        "padding as long as DATA",
        answering_server,
        data(1, b"\x03ab", PADDED),
        fails(E.PROTOCOL_ERROR),
    ),
    Case("all of DATA is padding", answering_server, data(1, b"\x02ab", PADDED), OK),
    Case(
        "padded DATA without pad length",
        answering_server,
        data(1, b"", PADDED),
        fails(E.FRAME_SIZE_ERROR),
    ),
    # 6.2 HEADERS
    Case(
        "padding longer than HEADERS",
        server,
        frame(FrameType.HEADERS, END_HEADERS | PADDED, 1, b"\x09" + b"\x88"),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "padded HEADERS without pad length",
        server,
        frame(FrameType.HEADERS, END_HEADERS | PADDED, 1),
        fails(E.FRAME_SIZE_ERROR),
    ),
    Case(
        "HEADERS too short for its priority",
        server,
        frame(FrameType.HEADERS, END_HEADERS | PRIORITY, 1, b"1234"),
        fails(E.FRAME_SIZE_ERROR),
    ),
    Case(
        "HEADERS with padding and priority",
        server,
        frame(
            FrameType.HEADERS,
            END_HEADERS | PADDED | PRIORITY,
            1,
            b"\x02" + bytes(5) + BLOCK + b"ab",
        ),
        OK,
    ),
    # 6.3 PRIORITY
    Case(
        "PRIORITY on stream 0",
        server,
        frame(FrameType.PRIORITY, 0, 0, bytes(5)),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "PRIORITY of 4 octets",
        server,
        frame(FrameType.PRIORITY, 0, 1, bytes(4)),
        fails(E.FRAME_SIZE_ERROR),
    ),
    # 6.4 RST_STREAM
    Case("RST_STREAM on stream 0", server, rst_stream(0, 8), fails(E.PROTOCOL_ERROR)),
    Case(
        "RST_STREAM of 3 octets",
        answering_server,
        frame(FrameType.RST_STREAM, 0, 1, bytes(3)),
        fails(E.FRAME_SIZE_ERROR),
    ),
    # 6.5 SETTINGS
    Case(
        "SETTINGS on a stream",
        server,
        frame(FrameType.SETTINGS, 0, 1),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "SETTINGS ACK with payload",
        server,
        frame(FrameType.SETTINGS, ACK, 0, bytes(6)),
        fails(E.FRAME_SIZE_ERROR),
    ),
    Case(
        "SETTINGS of 7 octets",
        server,
        frame(FrameType.SETTINGS, 0, 0, bytes(7)),
        fails(E.FRAME_SIZE_ERROR),
    ),
    Case("ENABLE_PUSH = 2", server, setting(Setting.ENABLE_PUSH, 2), fails(E.PROTOCOL_ERROR)),
    Case("server enables push", client, setting(Setting.ENABLE_PUSH, 1), fails(E.PROTOCOL_ERROR)),
    Case(
        "INITIAL_WINDOW_SIZE = 2^31",
        server,
        setting(Setting.INITIAL_WINDOW_SIZE, 2**31),
        fails(E.FLOW_CONTROL_ERROR),
    ),
    Case(
        "MAX_FRAME_SIZE too small",
        server,
        setting(Setting.MAX_FRAME_SIZE, 16_383),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "MAX_FRAME_SIZE too large",
        server,
        setting(Setting.MAX_FRAME_SIZE, 2**24),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "ENABLE_CONNECT_PROTOCOL = 2",
        client,
        setting(Setting.ENABLE_CONNECT_PROTOCOL, 2),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "ENABLE_CONNECT_PROTOCOL reset to 0",
        client,
        setting(Setting.ENABLE_CONNECT_PROTOCOL, 1) + setting(Setting.ENABLE_CONNECT_PROTOCOL, 0),
        fails(E.PROTOCOL_ERROR),
    ),
    Case("unknown setting is ignored", server, setting(0xF0, 2**32 - 1), OK),
    Case(
        "hundreds of settings in a frame",
        server,
        settings_frame([(0xF0, 0)] * 500),
        fails(E.ENHANCE_YOUR_CALM),
    ),
    # 6.6 PUSH_PROMISE
    Case(
        "PUSH_PROMISE to a client that disabled it",
        tunnel_client,
        frame(FrameType.PUSH_PROMISE, END_HEADERS, 1, LONG.pack(2)),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "PUSH_PROMISE to a server",
        answering_server,
        frame(FrameType.PUSH_PROMISE, END_HEADERS, 1, LONG.pack(2)),
        fails(E.PROTOCOL_ERROR),
    ),
    # 6.7 PING
    Case(
        "PING on a stream", server, frame(FrameType.PING, 0, 1, bytes(8)), fails(E.PROTOCOL_ERROR)
    ),
    Case(
        "PING of 6 octets", server, frame(FrameType.PING, 0, 0, bytes(6)), fails(E.FRAME_SIZE_ERROR)
    ),
    # 6.8 GOAWAY
    Case(
        "GOAWAY on a stream",
        server,
        frame(FrameType.GOAWAY, 0, 1, bytes(8)),
        fails(E.PROTOCOL_ERROR),
    ),
    Case(
        "GOAWAY of 7 octets",
        server,
        frame(FrameType.GOAWAY, 0, 0, bytes(7)),
        fails(E.FRAME_SIZE_ERROR),
    ),
    Case("GOAWAY with debug data", tunnel_client, goaway(1, 0, b"why" * 1000), OK),
    Case("GOAWAY twice, lower", tunnel_client, goaway(5, 0) + goaway(1, 0), OK),
    Case(
        "GOAWAY twice, higher", tunnel_client, goaway(1, 0) + goaway(5, 0), fails(E.PROTOCOL_ERROR)
    ),
    # 6.9 WINDOW_UPDATE and flow control
    Case("WINDOW_UPDATE by 0", server, window_update(0, 0), fails(E.PROTOCOL_ERROR)),
    Case(
        "WINDOW_UPDATE of a stream by 0",
        answering_server,
        window_update(1, 0),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "WINDOW_UPDATE of 3 octets",
        server,
        frame(FrameType.WINDOW_UPDATE, 0, 0, bytes(3)),
        fails(E.FRAME_SIZE_ERROR),
    ),
    Case(
        "connection window beyond 2^31-1",
        server,
        window_update(0, 2**31 - 1),
        fails(E.FLOW_CONTROL_ERROR),
    ),
    Case(
        "stream window beyond 2^31-1",
        answering_server,
        window_update(1, 2**31 - 1),
        resets(E.FLOW_CONTROL_ERROR),
    ),
    Case(
        "stream window beyond 2^31-1 by SETTINGS",
        answering_server,
        window_update(1, 2**31 - 1 - constants.DEFAULT_WINDOW_BYTES)
        + setting(Setting.INITIAL_WINDOW_SIZE, constants.DEFAULT_WINDOW_BYTES + 1),
        fails(E.FLOW_CONTROL_ERROR),
    ),
    Case(
        "more DATA than the stream window",
        answering_server,
        data(1, bytes(constants.MAX_FRAME_BYTES)) * 4 + data(1, b"x"),
        fails(E.FLOW_CONTROL_ERROR),
    ),
    Case(
        "padding beyond the stream window",
        answering_server,
        data(1, bytes(constants.MAX_FRAME_BYTES)) * 4 + data(1, b"\x00", PADDED),
        fails(E.FLOW_CONTROL_ERROR),
    ),
    # 8.1 messages
    Case("trailers inside a tunnel", answering_server, TRAILERS, resets(E.PROTOCOL_ERROR)),
    Case("HEADERS inside a tunnel", answering_server, request(1), resets(E.PROTOCOL_ERROR)),
    Case("trailers inside a client's tunnel", tunnel_client, TRAILERS, resets(E.PROTOCOL_ERROR)),
    Case("trailers after a refusal", refused_client, TRAILERS, OK),
    Case(
        "trailers without END_STREAM",
        refused_client,
        raw_request(1, [(b"a", b"b")]),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "pseudo-header in trailers",
        refused_client,
        response(1, 200, end=True),
        resets(E.PROTOCOL_ERROR),
    ),
    Case("DATA before the response", client_with_stream, data(1, b"x"), resets(E.PROTOCOL_ERROR)),
    Case(
        "interim response ends the stream",
        client_with_stream,
        response(1, 103, end=True),
        resets(E.PROTOCOL_ERROR),
    ),
    Case("interim response", client_with_stream, response(1, 103) + response(1, 200), OK),
    Case("response 101", client_with_stream, response(1, 101), resets(E.PROTOCOL_ERROR)),
    Case(
        "response without status",
        client_with_stream,
        raw_request(1, [(b"a", b"b")]),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "status is not a number",
        client_with_stream,
        raw_request(1, [(b":status", b"2OO")]),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "status twice",
        client_with_stream,
        raw_request(1, [(b":status", b"200"), (b":status", b"200")]),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "request pseudo-header in a response",
        client_with_stream,
        raw_request(1, [(b":status", b"200"), (b":path", b"/")]),
        resets(E.PROTOCOL_ERROR),
    ),
    # 8.2 fields
    Case(
        "uppercase name", server, bad(METHOD, AUTHORITY, (b"Via", b"x")), resets(E.PROTOCOL_ERROR)
    ),
    Case("empty name", server, bad(METHOD, AUTHORITY, (b"", b"x")), resets(E.PROTOCOL_ERROR)),
    Case("space in name", server, bad(METHOD, AUTHORITY, (b"a b", b"x")), resets(E.PROTOCOL_ERROR)),
    Case(
        "newline in value",
        server,
        bad(METHOD, AUTHORITY, (b"a", b"b\nc")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case("NUL in value", server, bad(METHOD, AUTHORITY, (b"a", b"\0")), resets(E.PROTOCOL_ERROR)),
    Case(
        "value ends with space",
        server,
        bad(METHOD, AUTHORITY, (b"a", b"b ")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case("value of octets beyond ASCII", server, bad(METHOD, AUTHORITY, (b"a", b"\xe9")), OK),
    Case(
        "connection field",
        server,
        bad(METHOD, AUTHORITY, (b"connection", b"close")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "transfer-encoding",
        server,
        bad(METHOD, AUTHORITY, (b"transfer-encoding", b"chunked")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case("te: gzip", server, bad(METHOD, AUTHORITY, (b"te", b"gzip")), resets(E.PROTOCOL_ERROR)),
    Case("te: trailers", server, bad(METHOD, AUTHORITY, (b"te", b"trailers")), OK),
    # 8.3 and 8.5 pseudo-header fields
    Case("method twice", server, bad(METHOD, METHOD, AUTHORITY), resets(E.PROTOCOL_ERROR)),
    Case(
        "unknown pseudo-header",
        server,
        bad(METHOD, AUTHORITY, (b":x", b"y")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "response pseudo-header in a request",
        server,
        bad(METHOD, AUTHORITY, (b":status", b"200")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "pseudo-header behind a field",
        server,
        bad(METHOD, (b"a", b"b"), AUTHORITY),
        resets(E.PROTOCOL_ERROR),
    ),
    Case("CONNECT without authority", server, bad(METHOD), resets(E.PROTOCOL_ERROR)),
    Case(
        "CONNECT with empty authority",
        server,
        bad(METHOD, (b":authority", b"")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case("CONNECT with path", server, bad(METHOD, AUTHORITY, PATH), resets(E.PROTOCOL_ERROR)),
    Case("CONNECT with scheme", server, bad(METHOD, AUTHORITY, SCHEME), resets(E.PROTOCOL_ERROR)),
    Case(
        "host contradicts authority",
        server,
        bad(METHOD, AUTHORITY, (b"host", b"elsewhere")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "extended CONNECT that was not announced",
        server,
        bad(METHOD, AUTHORITY, SCHEME, PATH, (b":protocol", b"connect-udp")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case(
        "no fields at all",
        server,
        frame(FrameType.HEADERS, END_HEADERS, 1),
        resets(E.PROTOCOL_ERROR),
    ),
    Case("GET without path", server, bad((b":method", b"GET"), SCHEME), resets(E.PROTOCOL_ERROR)),
    Case(
        "GET with empty path",
        server,
        bad((b":method", b"GET"), SCHEME, (b":path", b"")),
        resets(E.PROTOCOL_ERROR),
    ),
    Case("GET is left to the caller", server, bad((b":method", b"GET"), SCHEME, PATH), OK),
    # Floods
    Case("PING flood", server, ping(bytes(8)) * 5000, fails(E.ENHANCE_YOUR_CALM)),
    Case("SETTINGS flood", server, settings_frame([]) * 5000, fails(E.ENHANCE_YOUR_CALM)),
    Case("empty DATA flood", answering_server, data(1, b"") * 5000, fails(E.ENHANCE_YOUR_CALM)),
    Case(
        "padding flood", answering_server, data(1, b"\0", PADDED) * 5000, fails(E.ENHANCE_YOUR_CALM)
    ),
    Case(
        "PRIORITY flood",
        server,
        frame(FrameType.PRIORITY, 0, 1, bytes(5)) * 5000,
        fails(E.ENHANCE_YOUR_CALM),
    ),
    Case("unknown frame flood", server, frame(UNKNOWN, 0, 0) * 5000, fails(E.ENHANCE_YOUR_CALM)),
    Case(
        "rapid reset",
        server,
        b"".join(request(i) + rst_stream(i, 8) for i in range(1, 10_001, 2)),
        fails(E.ENHANCE_YOUR_CALM),
    ),
    Case(
        "flood of malformed requests",
        server,
        b"".join(raw_request(i, []) for i in range(1, 9999, 2)),
        fails(E.ENHANCE_YOUR_CALM),
    ),
    Case(
        "repeated resets forced by WINDOW_UPDATE by 0",
        server,
        b"".join(request(i) + window_update(i, 0) for i in range(1, 10_001, 2)),
        fails(E.ENHANCE_YOUR_CALM),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_violation_is_reported_with_its_error_code(case: Case) -> None:
    connection = case.make()
    events = connection.receive(memoryview(case.octets), 0.0)
    assert wire_helpers.verdict(connection, events) == case.expected


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if len(case.octets) < 20_000],
    ids=[case.name.replace(" ", "-") for case in CASES if len(case.octets) < 20_000],
)
def test_violation_sent_octet_by_octet_has_the_same_code(case: Case) -> None:
    connection = case.make()
    events = []
    for octet in range(len(case.octets)):
        events += connection.receive(memoryview(case.octets[octet : octet + 1]), 0.0)
    assert wire_helpers.verdict(connection, events) == case.expected


def test_cases_have_unique_names() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
