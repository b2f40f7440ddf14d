# SPDX-License-Identifier: Apache-2.0
"""Octets held for slow readers: the connection continues, up to a limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hbone.wire_helpers import data, greeted, request, split
from ztunnel.hbone import constants
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.events import ConnectionFailed, DataReceived
from ztunnel.hbone.flow_control import HeldCredit
from ztunnel.hbone.frames import FrameType

LIMIT = 1000
PIECE = 1024 * 1024


@given(st.lists(st.integers(-600, 600)))
def test_only_held_octets_beyond_the_limit_use_the_connection_window(steps: list[int]) -> None:
    held, total, owed = HeldCredit(LIMIT), 0, 0  # owed: received, without credit so far
    for step in steps:
        n = min(abs(step), total) if step < 0 else step
        if step < 0:
            owed -= held.remove(n)
            total -= n
        else:
            owed += n - held.add(n)
            total += n
        assert owed == max(total - LIMIT, 0)


def serving(streams: int) -> Connection:
    server = greeted(Role.SERVER)
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
    server = serving(1)
    stall(server, 1, constants.STREAM_WINDOW_BYTES)
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
