# SPDX-License-Identifier: Apache-2.0
"""Results do not depend on chunks, no input raises, plain HPACK agrees with the hpack package."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hbone.wire_helpers import (
    CONNECT,
    GREETING,
    client_with_stream,
    data,
    payload_of,
    request,
    split,
)
from ztunnel.hbone import constants, frames, headers
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.errors import H2ConnectionError
from ztunnel.hbone.events import (
    ConnectionFailed,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
)


def feed(connection: Connection, octets: bytes, cuts: list[int]) -> list[Event]:
    """Feed `octets` in chunks of these sizes, cyclically; copies the payloads."""
    events: list[Event] = []
    at, turn = 0, 0
    while at < len(octets):
        size = cuts[turn % len(cuts)] if cuts else len(octets)
        events += connection.receive(memoryview(octets[at : at + size]), 0.0)
        at, turn = at + size, turn + 1
    return events


CUTS = st.lists(st.integers(1, 40_000), max_size=8)
NAMES = st.from_regex(rb"[a-z][a-z0-9-]{0,300}", fullmatch=True)
VALUES = st.from_regex(rb"[!-~]([ -~]{0,200}[!-~])?", fullmatch=True) | st.just(b"")
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


@given(st.lists(st.binary(max_size=40_000), max_size=6), CUTS, CUTS, FIELDS)
def test_octets_of_a_tunnel_arrive_however_the_transport_splits_them(
    parts: list[bytes], there: list[int], back: list[int], fields: list[tuple[bytes, bytes]]
) -> None:
    fields = [field for field in fields if field[0] not in (b"host", b"te", b"connection")]
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    feed(client, server.take_output(), back)
    stream_id = client.request([*CONNECT, *fields])
    seen = feed(server, client.take_output(), there)
    assert [event.headers for event in seen if isinstance(event, RequestReceived)] == [
        tuple(fields)
    ]
    server.respond(stream_id, 200, fields)
    answer = feed(client, server.take_output(), back)
    assert any(isinstance(event, ResponseReceived) for event in answer)
    for part in parts:
        if part:
            frame = client.data_frame_header(stream_id, len(part)) + part
            events = feed(server, frame, there)
            assert payload_of(events) == part
            server.consumed(stream_id, len(part))
            feed(client, server.take_output(), back)
    client.end_stream(stream_id)
    assert feed(server, client.take_output(), there) == [StreamEnded(stream_id)]
    server.end_stream(stream_id)
    assert feed(client, server.take_output(), back) == [StreamEnded(stream_id)]
    assert client.open_streams == server.open_streams == 0


def check_sane(connection: Connection, events: list[Event]) -> None:
    failures = [event for event in events if isinstance(event, ConnectionFailed)]
    assert len(failures) == connection.failed
    if failures:
        assert events[-1] is failures[0]
    split(connection.take_output())  # complete frames only
    assert connection.open_streams <= constants.MAX_CONCURRENT_STREAMS


@given(st.binary(max_size=2000), CUTS, st.booleans(), st.booleans())
def test_random_octets_never_raise(
    octets: bytes, cuts: list[int], is_server: bool, greeted: bool
) -> None:
    connection = Connection(Role.SERVER if is_server else Role.CLIENT)
    connection.take_output()
    prefix = GREETING if is_server else frames.settings_frame([])
    check_sane(connection, feed(connection, (prefix if greeted else b"") + octets, cuts))


FRAMES = st.builds(
    frames.frame,
    st.integers(0, 12),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=60)
    | st.sampled_from([headers.encode(CONNECT), b"\x88", bytes(4), bytes(8), b"\0\0\0\1"]),
)


@given(st.lists(FRAMES, max_size=40), CUTS, st.booleans())
def test_random_frames_never_raise(octets: list[bytes], cuts: list[int], is_server: bool) -> None:
    connection = Connection(Role.SERVER if is_server else Role.CLIENT)
    prefix = GREETING if is_server else frames.settings_frame([])
    if not is_server:
        connection.request(CONNECT)
        connection.request(CONNECT)
    connection.take_output()
    check_sane(connection, feed(connection, prefix + b"".join(octets), cuts))


TRAFFIC = (
    GREETING
    + request(1)
    + data(1, b"hello" * 10)
    + frames.window_update(1, 1000)
    + frames.ping(b"12345678")
    + request(3, [*CONNECT, (b"baggage", b"a=b")])
    + data(3, b"\x02xyz__", frames.PADDED)
    + frames.rst_stream(3, 8)
    + data(1, b"", frames.END_STREAM)
    + frames.goaway(0, 0)
)


@given(
    st.lists(
        st.tuples(st.integers(len(frames.PREFACE), len(TRAFFIC) - 1), st.integers(0, 255)),
        min_size=1,
        max_size=6,
    ),
    CUTS,
)
def test_mutated_traffic_never_raises(changes: list[tuple[int, int]], cuts: list[int]) -> None:
    octets = bytearray(TRAFFIC)
    for at, value in changes:
        octets[at] = value
    connection = Connection(Role.SERVER)
    connection.take_output()
    check_sane(connection, feed(connection, bytes(octets), cuts))


@given(st.binary(max_size=300))
def test_mutated_chunking_gives_the_same_result(octets: bytes) -> None:
    whole, dripped = client_with_stream(200), client_with_stream(200)
    whole.receive(memoryview(octets), 0.0)
    feed(dripped, octets, [1])
    assert whole.take_output() == dripped.take_output()


@given(FIELDS)
def test_hpack_decodes_our_header_blocks(fields: list[tuple[bytes, bytes]]) -> None:
    block = headers.encode(fields)
    assert [tuple(field) for field in hpack.Decoder().decode(block, raw=True)] == fields
    assert headers.decode_plain(block) == fields
    assert headers.HeaderDecoder(1 << 20).decode(block) == fields


@given(st.binary(max_size=200))
def test_plain_decoder_and_hpack_agree_on_any_octets(block: bytes) -> None:
    try:
        expected = [tuple(field) for field in hpack.Decoder().decode(block, raw=True)]
    except hpack.HPACKError:
        assert headers.decode_plain(block) is None
        with pytest.raises(H2ConnectionError):
            headers.HeaderDecoder(1 << 16).decode(block)
    else:
        assert headers.decode_plain(block) in (None, expected)
        assert headers.HeaderDecoder(1 << 16).decode(block) == expected


def test_blocks_with_a_dynamic_table_are_decoded() -> None:
    server, encoder = Connection(Role.SERVER), hpack.Encoder()
    server.receive(memoryview(GREETING), 0.0)
    fields = [*CONNECT, (b"baggage", b"service.name=my-app")]
    for stream_id in (1, 3):  # the second block consists of table indexes
        block = encoder.encode(fields)
        frame = frames.frame(frames.FrameType.HEADERS, frames.END_HEADERS, stream_id, block)
        (event,) = server.receive(memoryview(frame), 0.0)
        assert isinstance(event, RequestReceived)
        assert event.headers == ((b"baggage", b"service.name=my-app"),)
    assert len(block) < 10
