# SPDX-License-Identifier: Apache-2.0
"""The codec against the h2 library, as client and server, in random interleavings.

Random actions drive both sides, and octets are delivered at random times in random chunks. At the
end everything in flight is delivered, and payloads, ends, resets and windows must agree.
"""

from __future__ import annotations

import random
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hbone.wire_helpers import CONNECT
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.events import (
    ConnectionFailed,
    DataReceived,
    PongReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)


class Side:
    """What one side received and did on its streams."""

    def __init__(self) -> None:
        self.sent: dict[int, bytearray] = {}
        self.got: dict[int, bytearray] = {}
        self.owed: dict[int, int] = {}  # received, without credit so far
        self.statuses: dict[int, int] = {}
        self.requests: set[int] = set()
        self.ended: set[int] = set()  # by this side
        self.saw_end: set[int] = set()
        self.reset: set[int] = set()  # by either side
        self.pongs = 0

    def take(self, stream_id: int, payload: bytes, flow: int) -> None:
        self.got.setdefault(stream_id, bytearray()).extend(payload)
        self.owed[stream_id] = self.owed.get(stream_id, 0) + flow


class Ours(Side):
    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role
        self.connection = Connection(role)

    def receive(self, chunk: bytes) -> None:
        for event in self.connection.receive(memoryview(chunk), 0.0):
            assert not isinstance(event, ConnectionFailed), event
            if isinstance(event, DataReceived):
                self.take(event.stream_id, bytes(event.payload), len(event.payload))
            elif isinstance(event, RequestReceived):
                assert (event.method, event.authority) == (b"CONNECT", b"10.0.0.1:80")
                self.requests.add(event.stream_id)
            elif isinstance(event, ResponseReceived):
                self.statuses[event.stream_id] = event.status
            elif isinstance(event, StreamEnded):
                self.saw_end.add(event.stream_id)
            elif isinstance(event, StreamReset):
                assert event.by_peer, "h2 made a stream error"
                self.reset.add(event.stream_id)
            elif isinstance(event, PongReceived):
                self.pongs += 1

    def open(self) -> int:
        return self.connection.request(CONNECT)

    def answer(self, stream_id: int, status: int) -> None:
        self.connection.respond(stream_id, status)
        self.statuses[stream_id] = status

    def send(self, stream_id: int, payload: bytes) -> bytes:
        """Send what the windows allow; returns the octets for the wire."""
        payload = payload[: self.connection.sendable(stream_id)]
        if not payload:
            return b""
        self.sent.setdefault(stream_id, bytearray()).extend(payload)
        before = self.connection.take_output()
        return before + self.connection.data_frame_header(stream_id, len(payload)) + payload

    def end(self, stream_id: int) -> None:
        self.connection.end_stream(stream_id)

    def abort(self, stream_id: int) -> None:
        self.connection.reset(stream_id)

    def return_credit(self, stream_id: int) -> None:
        self.connection.consumed(stream_id, self.owed.pop(stream_id, 0))

    def ping(self) -> None:
        self.connection.ping(b"12345678")

    def output(self) -> bytes:
        return self.connection.take_output()


class Theirs(Side):
    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role
        config = h2.config.H2Configuration(
            client_side=role is Role.CLIENT, header_encoding=None, validate_inbound_headers=True
        )
        self.h2: Any = h2.connection.H2Connection(config)
        self.h2.initiate_connection()

    def receive(self, chunk: bytes) -> None:
        for event in self.h2.receive_data(chunk):
            if isinstance(event, h2.events.DataReceived):
                self.take(event.stream_id, event.data, event.flow_controlled_length)
            elif isinstance(event, h2.events.RequestReceived):
                self.requests.add(event.stream_id)
            elif isinstance(event, h2.events.ResponseReceived):
                self.statuses[event.stream_id] = int(dict(event.headers)[b":status"])
            elif isinstance(event, h2.events.StreamEnded):
                self.saw_end.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.reset.add(event.stream_id)
            elif isinstance(event, h2.events.PingAckReceived):
                self.pongs += 1
            assert not isinstance(event, h2.events.ConnectionTerminated)

    def open(self) -> int:
        stream_id: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, CONNECT)
        return stream_id

    def answer(self, stream_id: int, status: int) -> None:
        self.h2.send_headers(stream_id, [(b":status", b"%d" % status)])
        self.statuses[stream_id] = status

    def send(self, stream_id: int, payload: bytes) -> bytes:
        room = self.h2.local_flow_control_window(stream_id)
        payload = payload[: max(0, min(room, self.h2.max_outbound_frame_size))]
        if not payload:
            return b""
        self.sent.setdefault(stream_id, bytearray()).extend(payload)
        self.h2.send_data(
            stream_id,
            payload,
            pad_length=len(payload) % 7 or None if room > len(payload) + 7 else None,
        )
        return self.output()

    def end(self, stream_id: int) -> None:
        self.h2.end_stream(stream_id)

    def abort(self, stream_id: int) -> None:
        self.h2.reset_stream(stream_id, error_code=8)

    def return_credit(self, stream_id: int) -> None:
        self.h2.acknowledge_received_data(self.owed.pop(stream_id, 0), stream_id)

    def ping(self) -> None:
        self.h2.ping(b"12345678")

    def output(self) -> bytes:
        octets: bytes = self.h2.data_to_send()
        return octets


class Exchange:
    """Two sides, the octets between them, and the streams opened so far."""

    def __init__(self, our_role: Role, cuts: list[int]) -> None:
        their_role = Role.SERVER if our_role is Role.CLIENT else Role.CLIENT
        self.ours, self.theirs = Ours(our_role), Theirs(their_role)
        self.client = self.ours if our_role is Role.CLIENT else self.theirs
        self.server = self.theirs if our_role is Role.CLIENT else self.ours
        self.wire: dict[Side, bytearray] = {self.ours: bytearray(), self.theirs: bytearray()}
        self.cuts = cuts or [1 << 20]
        self.streams: list[int] = []

    def deliver(self, to: Ours | Theirs) -> None:
        """Deliver all output of the other side."""
        origin = self.theirs if to is self.ours else self.ours
        octets = bytes(self.wire[to]) + origin.output()
        self.wire[to].clear()
        at = turn = 0
        while at < len(octets):
            size = self.cuts[turn % len(self.cuts)]
            to.receive(octets[at : at + size])
            at, turn = at + size, turn + 1

    def settle(self) -> None:
        for _ in range(4):
            self.deliver(self.ours)
            self.deliver(self.theirs)

    def act(self, what: str, which: int, mine: bool, size: int) -> None:
        side: Ours | Theirs = self.ours if mine else self.theirs
        if what == "deliver":
            self.deliver(side)
        elif what == "open" and len(self.streams) < 20:
            self.streams.append(self.client.open())
        elif what == "ping":
            side.ping()
        elif self.streams:
            self.act_on_stream(what, self.streams[which % len(self.streams)], side, size)

    def act_on_stream(self, what: str, stream_id: int, side: Ours | Theirs, size: int) -> None:
        if what == "answer" and self.may_answer(stream_id):
            self.server.answer(stream_id, 200)
        elif what == "credit" and side.owed.get(stream_id):
            if stream_id not in side.reset or side is self.ours:
                side.return_credit(stream_id)
        elif not self.may_send(side, stream_id):
            return
        elif what == "send":
            other = self.theirs if side is self.ours else self.ours
            self.wire[other] += side.send(stream_id, bytes([stream_id & 0xFF]) * size)
        elif what == "end":
            side.end(stream_id)
            side.ended.add(stream_id)
        elif what == "abort":
            side.abort(stream_id)
            side.reset.add(stream_id)

    def may_answer(self, stream_id: int) -> bool:
        server = self.server
        return (
            stream_id in server.requests
            and stream_id not in server.statuses
            and stream_id not in server.reset
        )

    def may_send(self, side: Side, stream_id: int) -> bool:
        if side is self.server and stream_id not in side.statuses:
            return False
        return stream_id not in side.reset and stream_id not in side.ended


WHAT = (*["send"] * 6, *["deliver"] * 4, *["credit"] * 3, *["open", "answer"] * 2)
WHAT += ("end", "abort", "ping")
SIZES = (1, 3, 100, 5_000, 16_384, 40_000, 70_000)
ACTIONS = st.lists(
    st.tuples(st.sampled_from(WHAT), st.integers(0, 19), st.booleans(), st.sampled_from(SIZES)),
    max_size=80,
)
CUTS = st.lists(st.integers(1, 20_000), max_size=4)


def run(our_role: Role, actions: list[tuple[str, int, bool, int]], cuts: list[int]) -> Exchange:
    exchange = Exchange(our_role, cuts)
    exchange.settle()
    for action in actions:
        exchange.act(*action)
    exchange.settle()
    return exchange


def check(exchange: Exchange) -> None:
    ours, theirs = exchange.ours, exchange.theirs
    for stream_id in exchange.streams:
        dead = stream_id in ours.reset or stream_id in theirs.reset
        for sender, receiver in ((ours, theirs), (theirs, ours)):
            sent = sender.sent.get(stream_id, b"")
            got = receiver.got.get(stream_id, b"")
            assert sent.startswith(got)
            if not dead:
                assert sent == got
                assert (stream_id in sender.ended) == (stream_id in receiver.saw_end)
        if dead:
            assert ours.connection.sendable(stream_id) == 0
        else:
            assert stream_id in exchange.server.requests
            check_windows(exchange, stream_id)


def check_windows(exchange: Exchange, stream_id: int) -> None:
    """Each side's send windows equal the receive windows of the other."""
    ours, theirs = exchange.ours, exchange.theirs
    if stream_id in ours.ended or stream_id in theirs.ended:
        return
    if exchange.may_send(ours, stream_id):
        room = min(theirs.h2.remote_flow_control_window(stream_id), 16_384)
        assert ours.connection.sendable(stream_id) == max(room, 0)
    stream = ours.connection._live[stream_id]
    room = min(stream.receive_window.available, ours.connection._receive_window.available)
    assert theirs.h2.local_flow_control_window(stream_id) == room


@settings(max_examples=150)
@given(ACTIONS, CUTS)
def test_our_client_and_an_h2_server_agree(
    actions: list[tuple[str, int, bool, int]], cuts: list[int]
) -> None:
    check(run(Role.CLIENT, actions, cuts))


@settings(max_examples=150)
@given(ACTIONS, CUTS)
def test_an_h2_client_and_our_server_agree(
    actions: list[tuple[str, int, bool, int]], cuts: list[int]
) -> None:
    check(run(Role.SERVER, actions, cuts))


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("seed", range(20))
def test_long_interleavings_agree(role: Role, seed: int) -> None:
    """Long ones explicitly: hypothesis prefers short ones."""
    dice = random.Random(seed)
    actions = [
        (dice.choice(WHAT), dice.randrange(20), dice.random() < 0.5, dice.choice(SIZES))
        for _ in range(1000)
    ]
    exchange = run(role, actions, [dice.randrange(1, 20_000) for _ in range(3)])
    check(exchange)
    assert len(exchange.streams) == 20
    assert exchange.ours.reset
    assert sum(map(len, exchange.ours.got.values())) > 65_535


def test_bulk_flows_both_ways_through_small_windows() -> None:
    for role in Role:
        exchange = run(role, [("open", 0, True, 0)], [])
        stream_id = exchange.streams[0]
        exchange.server.answer(stream_id, 200)
        exchange.settle()
        for _ in range(200):
            for side in (exchange.ours, exchange.theirs):
                exchange.act_on_stream("send", stream_id, side, 16_000)
            exchange.settle()
            for side in (exchange.ours, exchange.theirs):
                exchange.act_on_stream("credit", stream_id, side, 0)
        exchange.settle()
        check(exchange)
        assert len(exchange.ours.sent[stream_id]) > 10 * 65_535
        assert len(exchange.theirs.sent[stream_id]) > 10 * 65_535


def test_peer_without_header_table_decodes_our_headers() -> None:
    exchange = Exchange(Role.CLIENT, [])
    exchange.theirs.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    exchange.settle()
    exchange.act("open", 0, True, 0)
    exchange.settle()
    assert exchange.theirs.requests == {1}
