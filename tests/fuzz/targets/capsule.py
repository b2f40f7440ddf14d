# SPDX-License-Identifier: Apache-2.0
"""`hbone.capsule` never raises, does not depend on how input is split, and bounds its memory.

Its output is what an independent encoder produces.
"""

from __future__ import annotations

import random
from zlib import crc32

from tests.fuzz.target import Target, rearranged
from ztunnel.hbone.capsule import (
    MAX_UDP_PAYLOAD_BYTES,
    CapsuleReader,
    datagram_header,
    read_varint,
    varint,
)

HELD = MAX_UDP_PAYLOAD_BYTES + 64  # bytes that a reader may buffer: one capsule


def _read(octets: bytes, size: int) -> tuple[list[bytes], str, bool]:
    reader, found = CapsuleReader(), []
    for at in range(0, len(octets), size):
        if reader.error:
            break
        found += [bytes(each) for each in reader.feed(memoryview(octets)[at : at + size])]
        assert len(reader._held) <= HELD
    return found, reader.error, reader.is_at_boundary and not reader.error


def check(octets: bytes) -> None:
    whole = _read(octets, len(octets) or 1)
    assert _read(octets, 1 + crc32(octets) % 32) == whole
    payloads, _, is_at_boundary = whole
    assert sum(map(len, payloads)) <= len(octets)
    again = b"".join(datagram_header(len(each)) + each for each in payloads)
    assert _read(again, len(again) or 1) == (payloads, "", True)
    if is_at_boundary:
        assert _read(octets + again, 29)[0] == payloads + payloads


def _datagram(payload: bytes) -> bytes:
    return datagram_header(len(payload)) + payload


def _split(octets: bytes) -> list[bytes]:
    """The complete capsules, and the remainder."""
    view, parts, at = memoryview(octets), [], 0
    while at < len(octets):
        _, after = read_varint(view, at)
        length, start = read_varint(view, after) if after else (0, 0)
        end = start + length if start and start + length <= len(octets) else len(octets)
        parts.append(octets[at:end])
        at = end
    return parts


def _mutate(octets: bytes, chance: random.Random) -> bytes:
    number = varint(chance.getrandbits(chance.choice((2, 6, 7, 14, 15, 16, 30, 62))))
    spare = [
        _datagram(chance.randbytes(chance.choice((0, 1, 62, 63, 64, 200)))),
        number + varint(3) + b"abc",  # unknown type
        b"\0" + number + b"\0ab",  # wrong length
        b"\0" + varint(4) + b"\x41\0ab",  # another context
        b"\0\x40\x03\0hi",  # varints longer than necessary
        b"\0\x80\0\0\x03\xc0\0\0\0\0\0\0\0",
    ]
    return b"".join(rearranged(_split(octets), spare, chance))


TARGET = Target(
    check,
    seeds=(
        _datagram(b"hello") + _datagram(b""),
        _datagram(b"x" * 70) + varint(0x1234) + varint(5) + b"other" + _datagram(b"y"),
        b"\0" + varint(1),
        b"\0" + varint(MAX_UDP_PAYLOAD_BYTES + 2) + b"\0",
    ),
    mutate=_mutate,
    words=(b"\0", b"\x40\x00", b"\x80\0\0\0", b"\xc0" + bytes(7), b"\xff" * 8),
    max_len=400,
)
