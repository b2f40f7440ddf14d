# SPDX-License-Identifier: Apache-2.0
"""Octets held for slow readers: the connection continues, up to a limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hbone.wire_helpers import data, greeted, request, split
from ztunnel.hbone import constants
from ztunnel.hbone.buffer_budget import BufferBudget, BufferShare
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.events import ConnectionFailed, DataReceived
from ztunnel.hbone.flow_control import HeldCredit
from ztunnel.hbone.frames import FrameType

LIMIT = 1000
PIECE = 64 * 1024


@given(st.lists(st.integers(-600, 600)), st.integers(0, 3000))
def test_only_held_octets_beyond_the_limit_use_the_connection_window(
    steps: list[int], budget: int
) -> None:
    share = BufferBudget(budget).new_share()
    held, total, owed = HeldCredit(LIMIT, share), 0, 0  # owed: received, without credit so far
    for step in steps:
        n = min(abs(step), total) if step < 0 else step
        if step < 0:
            owed -= held.remove(n)
            total -= n
        else:
            owed += n - held.add(n)
            total += n
        assert 0 <= owed <= total
        assert share.used == total - owed <= min(LIMIT, budget // 2)
    held.release()
    assert share.used == 0


def serving(streams: int, share: BufferShare | None = None) -> Connection:
    server = greeted(Role.SERVER, share)
    for number in range(streams):
        server.receive(memoryview(request(2 * number + 1)), 0)
        server.respond(2 * number + 1, 200)
    server.take_output()
    return server


def stall(server: Connection, stream_id: int, octets: int) -> None:
    """The peer sends data that the reader of the stream does not read."""
    for _ in range(octets // PIECE):
        for event in server.receive(memoryview(data(stream_id, bytes(PIECE))), 0):
            assert isinstance(event, DataReceived), event
            server.hold(len(event.payload))


def credited(server: Connection) -> set[int]:
    """The streams (0: the connection) that got WINDOW_UPDATE."""
    sent = split(server.take_output())
    return {stream_id for kind, _, stream_id, _ in sent if kind == FrameType.WINDOW_UPDATE}


def test_held_octets_return_connection_credit_but_not_stream_credit() -> None:
    server = serving(2)
    for stream_id in (1, 3):
        stall(server, stream_id, constants.STREAM_WINDOW_BYTES)
    assert credited(server) == {0}
    server.consumed_held(1, constants.STREAM_WINDOW_BYTES)
    assert credited(server) == {1}


def test_held_octets_are_bounded_by_the_limit_and_one_connection_window() -> None:
    bound = constants.MAX_HELD_BYTES + constants.CONNECTION_WINDOW_BYTES
    full = bound // constants.STREAM_WINDOW_BYTES
    server = serving(full + 1)
    for number in range(full):
        stall(server, 2 * number + 1, constants.STREAM_WINDOW_BYTES)
    (event,) = server.receive(memoryview(data(2 * full + 1, b"one more")), 0)
    assert isinstance(event, ConnectionFailed)


def read_all(server: Connection, stream_id: int, octets: int) -> None:
    """The peer sends data that the reader of the stream reads at once."""
    for _ in range(octets // PIECE):
        for event in server.receive(memoryview(data(stream_id, bytes(PIECE))), 0):
            assert isinstance(event, DataReceived), event
            server.consumed(stream_id, len(event.payload))


def available(server: Connection, stream_id: int) -> int:
    """How many octets the peer may send on a stream."""
    return server._live[stream_id].receive_window.available


def test_windows_grow_while_the_reader_keeps_up() -> None:
    server = serving(1)
    read_all(server, 1, 64 * 1024 * 1024)
    assert available(server, 1) > constants.MAX_STREAM_WINDOW_BYTES // 2
    connection = server._receive_window
    assert connection.limit == constants.MAX_CONNECTION_WINDOW_BYTES


def test_stalled_readers_do_not_stop_a_reader_that_keeps_up() -> None:
    server = serving(101)
    for number in range(100):
        stall(server, 2 * number + 1, constants.STREAM_WINDOW_BYTES)
    read_all(server, 201, 16 * 1024 * 1024)


def test_stalled_readers_of_all_connections_of_a_pod_use_half_of_the_budget() -> None:
    budget = BufferBudget(8 * 1024 * 1024)
    share = budget.new_share()
    servers = [serving(40, share) for _ in range(4)]
    for server in servers:
        window = server._receive_window
        for number in range(40):
            octets = min(available(server, 2 * number + 1), window.available)
            stall(server, 2 * number + 1, octets // PIECE * PIECE)
    assert share.used <= budget.limit // 2
    other = serving(1, budget.new_share())
    read_all(other, 1, 16 * 1024 * 1024)
    for server in servers:
        server.release_memory()
    assert share.used == 0


def test_window_does_not_grow_without_room_in_the_share() -> None:
    server = serving(1, BufferBudget(0).new_share())
    read_all(server, 1, 16 * 1024 * 1024)
    assert server._receive_window.limit == constants.CONNECTION_WINDOW_BYTES
