# SPDX-License-Identifier: Apache-2.0
"""Responses and END_STREAM frames wait for others to share a record: briefly, and in order."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.unit.proxy.fake_session import FakeSession, NullOwner
from ztunnel.hbone.buffer_budget import BufferBudget
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.constants import BUFFER_BUDGET_BYTES
from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import (
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import READ, EventLoop
from ztunnel.proxy.tunnel.tunnel import Tunnel
from ztunnel.proxy.tunnel.write_coalescer import BUSY_GAP_S

CONNECT = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]


class NullStream:
    """A stream that ignores its events."""

    stream_id = 0

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


class TunnelSide:
    """A tunnel whose peer is a codec."""

    def __init__(self, role: Role) -> None:
        self.loop = EventLoop()
        mine, other = socket.socketpair()
        self.socks = (mine, other)
        self.session = FakeSession(mine)
        self.loop.register(mine.fileno(), READ, NullOwner())  # type: ignore[arg-type]
        self.tunnel = Tunnel(
            self.loop,
            BufferPool(),
            self.session,  # type: ignore[arg-type]
            role,
            peer="spiffe://td/ns/n/sa/s",
            owner=NullOwner(),
            share=BufferBudget(BUFFER_BUDGET_BYTES).new_share(),
        )
        self.peer = Connection(Role.SERVER if role is Role.CLIENT else Role.CLIENT)
        self.receive()
        self.turn()

    def receive(self) -> None:
        """Deliver the output of the peer to the tunnel."""
        octets = memoryview(self.peer.take_output())
        self.tunnel._dispatch(self.tunnel.connection.receive(octets, 0))

    def turn(self, timeout: float = 0) -> list[list[Event]]:
        """Run one turn; returns the peer's events for each write of the tunnel."""
        self.loop.turn(timeout)
        written, self.session.written = self.session.written, []
        return [self.peer.receive(memoryview(octets), 0.0) for octets in written]

    def open(self) -> int:
        """Client: open a stream."""
        return self.tunnel.open(CONNECT, NullStream())  # type: ignore[arg-type]

    def accept(self) -> int:
        """Server: the peer opens a stream."""
        stream_id = self.peer.request(CONNECT)
        self.receive()
        self.tunnel.attach(stream_id, NullStream())  # type: ignore[arg-type]
        self.turn()
        return stream_id

    def send(self, stream_id: int, data: bytes) -> None:
        """Send data as a relay does."""
        stream = NullStream()
        stream.stream_id = stream_id
        room = self.tunnel.claim(stream)  # type: ignore[arg-type]
        assert room is not None
        room[: len(data)] = data
        self.tunnel.commit(stream_id, len(data))


@pytest.fixture
def client() -> Iterator[TunnelSide]:
    yield from _end(Role.CLIENT)


@pytest.fixture
def server() -> Iterator[TunnelSide]:
    yield from _end(Role.SERVER)


def _end(role: Role) -> Iterator[TunnelSide]:
    one = TunnelSide(role)
    yield one
    for sock in one.socks:
        sock.close()


def kinds(write: list[Event]) -> list[type]:
    return [type(event) for event in write]


def test_response_shares_a_record_with_the_apps_first_data(server: TunnelSide) -> None:
    one = server.accept()
    server.loop.now += 60  # the delay does not end during the test, on a slow machine either
    server.tunnel.respond(one, 200, [], may_wait=True)
    assert server.turn() == []
    server.send(one, b"hello")
    (write,) = server.turn()
    assert kinds(write) == [ResponseReceived, DataReceived]


def test_response_is_sent_after_the_delay_when_the_app_sends_nothing(server: TunnelSide) -> None:
    one = server.accept()
    server.tunnel.respond(one, 200, [], may_wait=True)
    (write,) = server.turn(timeout=60)  # the timer of the coalescer ends the turn
    assert kinds(write) == [ResponseReceived]


def test_immediate_response_flushes_delayed_ones_in_order(server: TunnelSide) -> None:
    one, two = server.accept(), server.accept()
    server.tunnel.respond(one, 200, [], may_wait=True)
    server.tunnel.respond(two, 200, [])
    (write,) = server.turn()
    assert [event.stream_id for event in write if isinstance(event, ResponseReceived)] == [one, two]


def test_reset_does_not_overtake_a_delayed_response(server: TunnelSide) -> None:
    one = server.accept()
    server.tunnel.respond(one, 200, [], may_wait=True)
    server.tunnel.reset(one, ErrorCode.CANCEL)
    (write,) = server.turn()
    assert kinds(write) == [ResponseReceived, StreamReset]


def test_end_stream_is_sent_at_once_on_an_idle_tunnel(client: TunnelSide) -> None:
    one = client.open()
    client.turn()
    client.tunnel.end_stream(one)
    (write,) = client.turn()
    assert kinds(write) == [StreamEnded]


def test_end_stream_shares_a_record_with_the_next_request_on_a_busy_tunnel(
    client: TunnelSide,
) -> None:
    one, _ = client.open(), client.open()
    client.turn()
    client.loop.now -= BUSY_GAP_S / 2  # the tunnel stays busy on a slow machine too
    client.tunnel.end_stream(one)
    assert client.session.written == []
    client.open()
    (write,) = client.turn()
    assert kinds(write) == [StreamEnded, RequestReceived]


def test_end_stream_is_sent_after_the_delay_when_no_request_follows(client: TunnelSide) -> None:
    one, _ = client.open(), client.open()
    client.turn()
    client.loop.now -= BUSY_GAP_S / 2
    client.tunnel.end_stream(one)
    (write,) = client.turn(timeout=60)
    assert kinds(write) == [StreamEnded]


def test_end_stream_shares_a_record_with_data_of_the_same_turn(client: TunnelSide) -> None:
    one, _ = client.open(), client.open()
    client.turn()
    client.peer.respond(one, 200)
    client.receive()
    client.turn()
    client.send(one, b"last data")
    client.tunnel.end_stream(one)
    (write,) = client.turn()
    assert kinds(write) == [DataReceived, StreamEnded]


def test_delayed_frames_are_sent_before_a_drained_tunnel_closes(client: TunnelSide) -> None:
    one, two = client.open(), client.open()
    client.turn()
    client.loop.now -= BUSY_GAP_S / 2
    client.tunnel.end_stream(one)
    client.tunnel.reset(two)
    client.tunnel.drain()
    assert StreamEnded in [kind for write in client.turn() for kind in kinds(write)]


def test_delayed_end_stream_is_sent_before_the_tunnel_is_aborted(client: TunnelSide) -> None:
    one, _ = client.open(), client.open()
    client.turn()
    client.loop.now -= BUSY_GAP_S / 2
    client.tunnel.end_stream(one)
    client.tunnel.close("deadline")
    (write,) = client.turn()
    assert kinds(write) == [StreamEnded]
