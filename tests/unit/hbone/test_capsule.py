# SPDX-License-Identifier: Apache-2.0
"""Capsules: the result does not depend on the pieces, no input raises, limits hold."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ztunnel.hbone.capsule import (
    MAX_DATAGRAM_HEADER_BYTES,
    MAX_UDP_PAYLOAD_BYTES,
    CapsuleReader,
    datagram_header,
    read_varint,
    varint,
)


def datagram(payload: bytes) -> bytes:
    return datagram_header(len(payload)) + payload


def capsule(kind: int, value: bytes) -> bytes:
    return varint(kind) + varint(len(value)) + value


def read(data: bytes, *sizes: int) -> tuple[list[bytes], CapsuleReader]:
    """Feed in pieces of these sizes, cyclically; in one piece without sizes."""
    reader = CapsuleReader()
    found: list[bytes] = []
    pos = turn = 0
    while pos < len(data):
        size = sizes[turn % len(sizes)] if sizes else len(data)
        found += map(bytes, reader.feed(memoryview(data)[pos : pos + size]))
        pos, turn = pos + size, turn + 1
    return found, reader


@pytest.mark.parametrize(
    ("value", "octets"),
    [  # RFC 9000 A.1
        (151_288_809_941_952_652, "c2197c5eff14e88c"),
        (494_878_333, "9d7f3e7d"),
        (15_293, "7bbd"),
        (37, "25"),
    ],
)
def test_varints_match_rfc_9000(value: int, octets: str) -> None:
    assert varint(value).hex() == octets
    assert read_varint(memoryview(bytes.fromhex(octets)), 0) == (value, len(octets) // 2)


@given(st.integers(0, 2**62 - 1))
def test_varint_round_trip(value: int) -> None:
    assert read_varint(memoryview(b"x" + varint(value)), 1) == (value, 1 + len(varint(value)))


@pytest.mark.parametrize(
    "size", [0, 1, 62, 63, 64, 1472, 16_382, 16_383, 16_384, MAX_UDP_PAYLOAD_BYTES]
)
def test_payloads_of_all_sizes_round_trip(size: int) -> None:
    assert len(datagram_header(size)) <= MAX_DATAGRAM_HEADER_BYTES
    payload = bytes(n & 0xFF for n in range(size))
    found, reader = read(datagram(payload) + datagram(b"next"))
    assert found == [payload, b"next"]
    assert reader.is_at_boundary


def test_too_large_payload_raises() -> None:
    with pytest.raises(ValueError, match="65528"):
        datagram_header(MAX_UDP_PAYLOAD_BYTES + 1)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200).map(lambda payload: (payload, datagram(payload))),
            st.tuples(st.integers(1, 2**62 - 1), st.binary(max_size=200)).map(
                lambda pair: (None, capsule(*pair))
            ),
            st.tuples(st.integers(1, 2**62 - 1), st.binary(max_size=200)).map(
                lambda pair: (None, capsule(0, varint(pair[0]) + pair[1]))
            ),
        ),
        max_size=12,
    ),
    st.lists(st.integers(1, 97), min_size=1, max_size=6),
)
def test_result_does_not_depend_on_the_pieces(
    capsules: list[tuple[bytes | None, bytes]], sizes: list[int]
) -> None:
    octets = b"".join(raw for _, raw in capsules)
    wanted = [payload for payload, _ in capsules if payload is not None]
    for pieces in ((), sizes, [1]):
        found, reader = read(octets, *pieces)
        assert found == wanted
        assert not reader.error
        assert reader.is_at_boundary


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), min_size=1, max_size=5))
@example(b"\x00\x00", [1])
@example(b"\x00\x01\x40", [1])
@example(b"\x00\xff", [1])
def test_hostile_octets_never_raise_however_they_are_split(octets: bytes, sizes: list[int]) -> None:
    whole, one = read(octets)
    parts, other = read(octets, *sizes)
    assert whole == parts
    assert one.error == other.error


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"\0\0", "too short for its context"),
        (b"\0\1\x40", "too short for its context"),
        (b"\0\7\xc0" + bytes(20), "too short for its context"),
        (varint(0) + varint(MAX_UDP_PAYLOAD_BYTES + 2) + b"\0", "65528 octets"),
        (varint(0) + varint(2**62 - 1) + b"\0", "octets"),
    ],
)
@pytest.mark.parametrize("sizes", [(), (1,)])
def test_violations_of_rfc_9298_abort_the_stream(
    octets: bytes, why: str, sizes: tuple[int, ...]
) -> None:
    found, reader = read(octets + datagram(b"never"), *sizes)
    assert found == []
    assert why in reader.error


def test_lengths_need_not_be_minimal() -> None:
    found, _ = read(b"\x40\x00" + b"\xc0\0\0\0\0\0\0\x04" + b"\x40\x00" + b"ab", 1)
    assert found == [b"ab"]


def test_unknown_capsules_of_any_length_are_skipped_without_buffering() -> None:
    reader = CapsuleReader()
    reader.feed(memoryview(varint(77) + varint(2**40)))
    for _ in range(64):
        assert reader.feed(memoryview(bytes(1 << 20))) == []
    assert not reader._held
    assert not reader.error
    assert not reader.is_at_boundary
