# SPDX-License-Identifier: Apache-2.0
"""Memory and flood limits of a connection; conforming peers never reach them."""

from __future__ import annotations

import tracemalloc

import hpack
import pytest

from tests.unit.hbone.wire_helpers import (
    CONNECT,
    client_with_stream,
    data,
    greeted,
    payload_of,
    request,
    response,
    split,
)
from ztunnel.hbone import constants, frames
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.errors import ApiMisuseError, ErrorCode
from ztunnel.hbone.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAway,
    PongReceived,
    RequestReceived,
    SettingsReceived,
    StreamReset,
    WindowOpened,
)
from ztunnel.hbone.frames import PADDED, FrameType, Setting


def resets_sent(connection: Connection) -> list[int]:
    sent = split(connection.take_output())
    return [stream_id for kind, _, stream_id, _ in sent if kind == FrameType.RST_STREAM]


def test_of_10000_streams_200_are_accepted() -> None:
    server = greeted(Role.SERVER)
    accepted, failure = 0, None
    for stream_id in range(1, 20_001, 2):
        for event in server.receive(memoryview(request(stream_id)), 0.0):
            accepted += isinstance(event, RequestReceived)
            failure = event if isinstance(event, ConnectionFailed) else failure
    assert accepted == constants.MAX_CONCURRENT_STREAMS
    assert failure is not None
    assert failure.code == ErrorCode.ENHANCE_YOUR_CALM


def test_streams_above_the_limit_are_refused_until_others_end() -> None:
    server = greeted(Role.SERVER, max_streams=2)
    server.receive(memoryview(request(1) + request(3) + request(5)), 0.0)
    assert resets_sent(server) == [5]
    server.reset(1)
    assert len(server.receive(memoryview(request(7)), 0.0)) == 1


def test_answered_streams_may_be_reset_without_limit() -> None:
    server = greeted(Role.SERVER)
    for stream_id in range(1, 20_001, 2):
        server.receive(memoryview(request(stream_id)), 0.0)
        server.respond(stream_id, 200)
        octets = frames.rst_stream(stream_id, ErrorCode.CANCEL)
        assert server.receive(memoryview(octets), 0.0) == [StreamReset(stream_id, 8)]
        server.take_output()
    assert server.open_streams == 0


def test_late_frames_on_a_busy_tunnel_are_not_a_flood() -> None:
    server = greeted(Role.SERVER)
    for stream_id in range(1, 20_001, 2):
        server.receive(memoryview(request(stream_id)), 0.0)
        server.respond(stream_id, 200)
        server.reset(stream_id)
        late = (
            frames.window_update(stream_id, 1000)
            + data(stream_id, b"late")
            + data(stream_id, b"", frames.END_STREAM)
            + frames.rst_stream(stream_id, ErrorCode.CANCEL)
        )
        assert server.receive(memoryview(late), 0.0) == []
        server.take_output()


def test_regular_pings_over_days_are_answered() -> None:
    server = greeted(Role.SERVER)
    for beat in range(20_000):
        assert server.receive(memoryview(frames.ping(b"12345678")), beat * 10.0) == []
        assert server.take_output() == frames.ping(b"12345678", ack=True)


def test_unread_responses_end_the_connection() -> None:
    server = greeted(Role.SERVER)
    events = []
    for second in range(10_000):
        events += server.receive(memoryview(frames.ping(bytes(8)) * 100), float(second))
    assert isinstance(events[-1], ConnectionFailed)
    assert len(server.take_output()) < 2 * constants.MAX_QUEUED_OUTPUT_BYTES


def test_incomplete_frames_buffer_at_most_the_header_limit() -> None:
    server = greeted(Role.SERVER)
    server.receive(memoryview(request(1)), 0.0)
    server.respond(1, 200)
    chunk = memoryview(bytes(64 * 1024))
    tracemalloc.start()
    server.receive(memoryview(data(1, bytes(constants.MAX_FRAME_BYTES))[:9]), 0.0)
    for _ in range(15):
        server.receive(chunk, 0.0)
    held, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 16 * 1024


def test_payload_is_passed_on_before_its_frame_is_complete_and_without_a_copy() -> None:
    client = client_with_stream(200)
    chunk = bytearray(data(1, b"0123456789")[:12])
    (event,) = client.receive(memoryview(chunk), 0.0)
    assert isinstance(event, DataReceived)
    assert bytes(event.payload) == b"012"
    chunk[9:12] = b"abc"
    assert bytes(event.payload) == b"abc"


def test_credit_is_returned_in_large_updates() -> None:
    client = client_with_stream(200)
    quarter = constants.STREAM_WINDOW_BYTES // 4
    for _ in range(4):
        client.receive(memoryview(data(1, bytes(quarter))), 0.0)
    client.consumed(1, quarter - 1)
    assert client.take_output() == b""
    client.consumed(1, 1)
    assert client.take_output() == frames.window_update(1, quarter)
    client.consumed(1, 3 * quarter)
    increments = {sid: payload for _, _, sid, payload in split(client.take_output())}
    assert increments.keys() == {0, 1}


def test_codec_returns_credit_for_padding() -> None:
    client = greeted(Role.CLIENT, stream_window=65_535, connection_window=65_535)
    client.request(CONNECT)
    client.receive(memoryview(response(1, 200)), 0.0)
    frame = data(1, b"\xff" + b"p" + bytes(255), PADDED)
    for _ in range(100_000):
        (event,) = client.receive(memoryview(frame), 0.0)
        assert isinstance(event, DataReceived)
        client.consumed(1, 1)
    assert not client.failed


def test_late_data_of_a_reset_stream_does_not_use_up_the_connection_window() -> None:
    client = client_with_stream(200)
    client.reset(1)
    frame = data(1, bytes(constants.MAX_FRAME_BYTES))
    for _ in range(100):
        assert client.receive(memoryview(frame), 0.0) == []
    assert not client.failed


def test_credit_for_more_than_was_received_raises() -> None:
    client = client_with_stream(200)
    client.receive(memoryview(data(1, b"abc")), 0.0)
    with pytest.raises(ApiMisuseError):
        client.consumed(1, 4)
    client.consumed(1, 3)


def test_sending_stops_at_the_window_and_resumes() -> None:
    client = client_with_stream(200)
    while room := client.sendable(1):
        client.data_frame_header(1, room)
    with pytest.raises(ApiMisuseError):
        client.data_frame_header(1, 1)
    assert client.receive(memoryview(frames.window_update(1, 10)), 0.0) == [WindowOpened(1)]
    assert client.sendable(1) == 0  # the connection's window is still 0
    assert client.receive(memoryview(frames.window_update(0, 7)), 0.0) == [WindowOpened(0)]
    assert client.sendable(1) == 7


def test_smaller_initial_window_makes_a_stream_window_negative() -> None:
    client = client_with_stream(200)
    client.data_frame_header(1, 16_384)
    shrink = frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, 0)])
    assert client.receive(memoryview(shrink), 0.0) == [SettingsReceived()]
    assert client.sendable(1) == 0
    assert client.receive(memoryview(frames.window_update(1, 16_384)), 0.0) == []
    assert client.receive(memoryview(frames.window_update(1, 1)), 0.0) == [WindowOpened(1)]
    assert client.sendable(1) == 1


def test_frames_grow_to_the_peers_maximum() -> None:
    client = client_with_stream(200)
    assert client.sendable(1) == constants.DEFAULT_MAX_FRAME_BYTES
    wide = frames.settings_frame(
        [(Setting.MAX_FRAME_SIZE, 1 << 20), (Setting.INITIAL_WINDOW_SIZE, 1 << 22)]
    ) + frames.window_update(0, 1 << 24)
    client.receive(memoryview(wide), 0.0)
    assert client.sendable(1) == 1 << 20


def test_data_header_is_written_in_front_of_the_payload_in_place() -> None:
    client = client_with_stream(200)
    buffer = bytearray(b"." * 9 + b"payload")
    client.write_data_header_into(buffer, 0, 1, 7, end_stream=True)
    assert split(bytes(buffer)) == [(FrameType.DATA, frames.END_STREAM, 1, b"payload")]
    assert client.sendable(1) == 0


def test_goaway_resets_streams_that_the_peer_did_not_process() -> None:
    client = greeted(Role.CLIENT)
    for _ in range(3):
        client.request(CONNECT)
    events = client.receive(memoryview(frames.goaway(3, 0)), 0.0)
    assert events == [GoAway(3, 0), StreamReset(5, ErrorCode.REFUSED_STREAM)]
    assert client.open_streams == 2
    assert not client.can_open_stream
    with pytest.raises(ApiMisuseError):
        client.request(CONNECT)


def test_draining_server_refuses_new_streams_and_serves_open_ones() -> None:
    server = greeted(Role.SERVER)
    server.receive(memoryview(request(1)), 0.0)
    server.goaway()
    server.take_output()
    assert server.receive(memoryview(request(3)), 0.0) == []
    assert resets_sent(server) == [3]
    server.respond(1, 200)
    events = server.receive(memoryview(data(1, b"still here")), 0.0)
    assert payload_of(events) == b"still here"


def test_server_accepts_streams_that_were_on_the_way_when_it_announced_goaway() -> None:
    server, client = greeted(Role.SERVER), greeted(Role.CLIENT)
    client.request(CONNECT)
    server.receive(memoryview(request(1)), 0.0)
    server.announce_goaway()
    (sent,) = split(server.take_output())
    assert sent[0] == FrameType.GOAWAY
    assert client.receive(memoryview(frames.goaway(constants.MAX_STREAM_ID, 0)), 0.0) == [
        GoAway(constants.MAX_STREAM_ID, 0)
    ]
    assert (client.open_streams, client.can_open_stream) == (1, False)
    (event,) = server.receive(memoryview(request(3)), 0.0)
    assert isinstance(event, RequestReceived)
    server.goaway()
    assert split(server.take_output())[-1][3] == frames.goaway(3, 0)[9:]
    assert server.receive(memoryview(request(5)), 0.0) == []


def test_client_respects_the_peers_stream_limit() -> None:
    client = Connection(Role.CLIENT)
    limit = frames.settings_frame([(Setting.MAX_CONCURRENT_STREAMS, 1)])
    client.receive(memoryview(limit), 0.0)
    assert client.request(CONNECT) == 1
    assert not client.can_open_stream
    client.receive(memoryview(response(1, 503, end=True)), 0.0)
    client.end_stream(1)
    assert client.can_open_stream


def test_stream_limit_is_100_until_settings_without_a_limit_arrive() -> None:
    client = Connection(Role.CLIENT)
    while client.can_open_stream:
        client.request(CONNECT)
    assert client.open_streams == constants.INITIAL_PEER_MAX_STREAMS
    client.receive(memoryview(frames.settings_frame([])), 0.0)
    assert client.can_open_stream


def test_id_of_a_refused_stream_is_not_reused() -> None:
    server = greeted(Role.SERVER, max_streams=1)
    server.receive(memoryview(request(1) + request(5)), 0.0)
    assert resets_sent(server) == [5]
    server.reset(1)
    (failure,) = server.receive(memoryview(request(3)), 0.0)
    assert isinstance(failure, ConnectionFailed)
    assert failure.code == ErrorCode.STREAM_CLOSED


def test_ping_is_answered() -> None:
    client = greeted(Role.CLIENT)
    client.ping(b"12345678")
    assert client.take_output() == frames.ping(b"12345678")
    events = client.receive(memoryview(frames.ping(b"12345678", ack=True)), 0.0)
    assert events == [PongReceived(b"12345678")]


def test_server_sends_no_data_before_its_response() -> None:
    server = greeted(Role.SERVER)
    server.receive(memoryview(request(1)), 0.0)
    assert server.sendable(1) == 0
    with pytest.raises(ApiMisuseError):
        server.end_stream(1)


@pytest.mark.parametrize("value", [b"a\r\nb", b"a\x00", b" a"])
def test_header_injection_by_the_caller_raises(value: bytes) -> None:
    with pytest.raises(ApiMisuseError):
        greeted(Role.CLIENT).request([*CONNECT, (b"baggage", value)])


def test_extended_connect_is_announced_and_accepted_when_enabled() -> None:
    server = Connection(Role.SERVER, extended_connect=True)
    client = Connection(Role.CLIENT)
    client.receive(memoryview(server.take_output()), 0.0)
    assert client.peer_extended_connect
    fields = [*CONNECT, (b":scheme", b"https"), (b":path", b"/"), (b":protocol", b"connect-udp")]
    client.request(fields)
    events = server.receive(memoryview(client.take_output()), 0.0)
    requests = [event for event in events if isinstance(event, RequestReceived)]
    assert [event.protocol for event in requests] == [b"connect-udp"]


def test_nothing_follows_a_failure() -> None:
    server = greeted(Role.SERVER)
    events = server.receive(memoryview(data(1, b"x") + request(1)), 0.0)
    assert [type(event) for event in events] == [ConnectionFailed]
    assert server.receive(memoryview(request(1)), 0.0) == []


@pytest.mark.parametrize(
    "late",
    [
        frames.window_update(1, 1),
        frames.rst_stream(1, ErrorCode.CANCEL),
        data(1, b""),
        data(1, b"x"),
    ],
    ids=["WINDOW_UPDATE", "RST_STREAM", "empty DATA", "small DATA"],
)
def test_flood_of_frames_on_a_closed_stream_ends_the_connection(late: bytes) -> None:
    server = greeted(Role.SERVER)
    server.receive(memoryview(request(1)), 0.0)
    server.respond(1, 200)
    server.reset(1)
    events = server.receive(memoryview(late * (constants.MAX_LATE_FRAMES - 1)), 0.0)
    assert events == []
    events = server.receive(memoryview(late * (constants.OVERHEAD_FRAME_BURST + 2)), 0.0)
    assert isinstance(events[-1], ConnectionFailed)
    assert events[-1].code is ErrorCode.ENHANCE_YOUR_CALM


def compressed_request(stream_id: int) -> bytes:
    """A request of Istio's ztunnel: indexed fields and Huffman codes."""
    block = hpack.Encoder().encode([*CONNECT, (b"baggage", b"k8s.deployment.name=client" * 8)])
    return frames.frame(FrameType.HEADERS, frames.END_HEADERS, stream_id, block)


def test_thousand_compressed_requests_per_second_are_served() -> None:
    server = greeted(Role.SERVER)
    for number in range(10_000):
        stream_id = 2 * number + 1
        (received, *_) = server.receive(memoryview(compressed_request(stream_id)), number / 1000)
        assert isinstance(received, RequestReceived)
        server.respond(stream_id, 200)
        server.reset(stream_id)
        server.take_output()


def test_flood_of_compressed_headers_ends_the_connection() -> None:
    server = greeted(Role.SERVER)
    size = len(compressed_request(1))
    events: list[Event] = []
    for number in range(constants.HPACK_BURST_BYTES // size * 2):
        events = server.receive(memoryview(compressed_request(2 * number + 1)), 0.0)
        if not isinstance(events[-1], RequestReceived):
            break
        server.respond(2 * number + 1, 200)
        server.reset(2 * number + 1)
        server.take_output()
    assert isinstance(events[-1], ConnectionFailed)
    assert events[-1].code is ErrorCode.ENHANCE_YOUR_CALM
