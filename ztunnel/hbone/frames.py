# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 frames: type and setting codes, and encoding.

    +---------------+--------+--------+------------------+---------+
    | length (24)   | type 8 | flags 8| R + stream id 32 | payload |      RFC 9113 4.1
    +---------------+--------+--------+------------------+---------+

`ztunnel.hbone.frame_reader` decodes them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 3.4

HEAD = struct.Struct(">HBBBL")  # length >> 8, length & 255, type, flags, stream id
_LONG = struct.Struct(">L")
_SETTING = struct.Struct(">HL")
_GOAWAY = struct.Struct(">LL")


class FrameType(IntEnum):
    """RFC 9113 section 6."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


class Setting(IntEnum):
    """RFC 9113 6.5.2 and RFC 8441."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    ENABLE_CONNECT_PROTOCOL = 0x8


# Flags. ACK and END_STREAM share a bit; the frame type determines the meaning.
ACK = 0x1
END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Encode any frame."""
    length = len(payload)
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def settings_frame(values: Iterable[tuple[int, int]]) -> bytes:
    return frame(FrameType.SETTINGS, 0, 0, b"".join(_SETTING.pack(*value) for value in values))


def settings_ack() -> bytes:
    return frame(FrameType.SETTINGS, ACK, 0)


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The (identifier, value) pairs of a SETTINGS payload of valid length."""
    return list(_SETTING.iter_unpack(payload))


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(FrameType.WINDOW_UPDATE, 0, stream_id, _LONG.pack(increment))


def rst_stream(stream_id: int, code: int) -> bytes:
    return frame(FrameType.RST_STREAM, 0, stream_id, _LONG.pack(code))


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    return frame(FrameType.PING, ACK if ack else 0, 0, payload)


def goaway(last_stream: int, code: int, debug: bytes = b"") -> bytes:
    return frame(FrameType.GOAWAY, 0, 0, _GOAWAY.pack(last_stream, code) + debug)


def header_frames(stream_id: int, block: bytes, max_frame: int, *, end_stream: bool) -> bytes:
    """A header block as HEADERS and as many CONTINUATION frames as `max_frame` requires."""
    end = END_STREAM if end_stream else 0
    if len(block) <= max_frame:
        return frame(FrameType.HEADERS, END_HEADERS | end, stream_id, block)
    parts = [block[at : at + max_frame] for at in range(0, len(block), max_frame)]
    out = [frame(FrameType.HEADERS, end, stream_id, parts[0])]
    out += [frame(FrameType.CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
    out.append(frame(FrameType.CONTINUATION, END_HEADERS, stream_id, parts[-1]))
    return b"".join(out)
