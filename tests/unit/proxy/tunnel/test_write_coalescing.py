# SPDX-License-Identifier: Apache-2.0
"""Answers and ends that wait for other frames to go with: not for long, and never out of order."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.unit.proxy.fake_session import Owner, Wire
from ztunnel.hbone.connection import Connection, Role
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


class Deaf:
    """A stream that nobody holds."""

    stream_id = 0

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


class End:
    """One end of a tunnel; the peer is a codec."""

    def __init__(self, role: Role) -> None:
        self.loop = EventLoop()
        mine, other = socket.socketpair()
        self.socks = (mine, other)
        self.wire = Wire(mine)
        self.loop.register(mine.fileno(), READ, Owner())  # type: ignore[arg-type]
        self.tunnel = Tunnel(
            self.loop,
            BufferPool(),
            self.wire,  # type: ignore[arg-type]
            role,
            peer="spiffe://td/ns/n/sa/s",
            owner=Owner(),
        )
        self.peer = Connection(Role.SERVER if role is Role.CLIENT else Role.CLIENT)
        self.hear()
        self.turn()

    def hear(self) -> None:
        """Take in what the peer has said."""
        said = memoryview(self.peer.take_output())
        self.tunnel._dispatch(self.tunnel.connection.receive(said, 0))

    def turn(self, timeout: float = 0) -> list[list[Event]]:
        """One turn; what each write of it tells the peer."""
        self.loop.turn(timeout)
        written, self.wire.written = self.wire.written, []
        return [self.peer.receive(memoryview(octets), 0.0) for octets in written]

    def open(self) -> int:
        """Client: a stream."""
        return self.tunnel.open(CONNECT, Deaf())  # type: ignore[arg-type]

    def asked(self) -> int:
        """Server: the peer opens a stream."""
        stream_id = self.peer.request(CONNECT)
        self.hear()
        self.tunnel.attach(stream_id, Deaf())  # type: ignore[arg-type]
        self.turn()
        return stream_id

    def say(self, stream_id: int, words: bytes) -> None:
        """Send data as a relay does."""
        stream = Deaf()
        stream.stream_id = stream_id
        room = self.tunnel.claim(stream)  # type: ignore[arg-type]
        assert room is not None
        room[: len(words)] = words
        self.tunnel.commit(stream_id, len(words))


@pytest.fixture
def client() -> Iterator[End]:
    yield from _end(Role.CLIENT)


@pytest.fixture
def server() -> Iterator[End]:
    yield from _end(Role.SERVER)


def _end(role: Role) -> Iterator[End]:
    one = End(role)
    yield one
    for sock in one.socks:
        sock.close()


def kinds(write: list[Event]) -> list[type]:
    return [type(event) for event in write]


def test_response_shares_a_record_with_the_apps_first_data(server: End) -> None:
    one = server.asked()
    server.tunnel.respond(one, 200, [], may_wait=True)
    assert server.turn() == []
    server.say(one, b"hello")
    (write,) = server.turn()
    assert kinds(write) == [ResponseReceived, DataReceived]


def test_response_is_sent_after_the_delay_when_the_app_sends_nothing(server: End) -> None:
    one = server.asked()
    server.tunnel.respond(one, 200, [], may_wait=True)
    (write,) = server.turn(timeout=60)  # so it is the loop's timer that ends the turn
    assert kinds(write) == [ResponseReceived]


def test_immediate_response_flushes_delayed_ones_in_order(server: End) -> None:
    one, two = server.asked(), server.asked()
    server.tunnel.respond(one, 200, [], may_wait=True)
    server.tunnel.respond(two, 200, [])
    (write,) = server.turn()
    assert [event.stream_id for event in write if isinstance(event, ResponseReceived)] == [one, two]


def test_reset_does_not_overtake_a_delayed_response(server: End) -> None:
    one = server.asked()
    server.tunnel.respond(one, 200, [], may_wait=True)
    server.tunnel.reset(one, ErrorCode.CANCEL)
    (write,) = server.turn()
    assert kinds(write) == [ResponseReceived, StreamReset]


def test_end_stream_is_sent_at_once_on_an_idle_tunnel(client: End) -> None:
    one = client.open()
    client.turn()
    client.tunnel.end_stream(one)
    (write,) = client.turn()
    assert kinds(write) == [StreamEnded]


def test_end_stream_shares_a_record_with_the_next_request_on_a_busy_tunnel(client: End) -> None:
    one, _ = client.open(), client.open()
    client.turn()
    client.loop.now -= BUSY_GAP_S / 2  # a slow machine must not make the streams rare
    client.tunnel.end_stream(one)
    assert client.wire.written == []
    client.open()
    (write,) = client.turn()
    assert kinds(write) == [StreamEnded, RequestReceived]


def test_end_stream_is_sent_after_the_delay_when_no_request_follows(client: End) -> None:
    one, _ = client.open(), client.open()
    client.turn()
    client.loop.now -= BUSY_GAP_S / 2
    client.tunnel.end_stream(one)
    (write,) = client.turn(timeout=60)
    assert kinds(write) == [StreamEnded]


def test_end_stream_shares_a_record_with_data_of_the_same_turn(client: End) -> None:
    one, _ = client.open(), client.open()
    client.turn()
    client.peer.respond(one, 200)
    client.hear()
    client.turn()
    client.say(one, b"last words")
    client.tunnel.end_stream(one)
    (write,) = client.turn()
    assert kinds(write) == [DataReceived, StreamEnded]


def test_delayed_frames_are_sent_before_a_drained_tunnel_closes(client: End) -> None:
    one, two = client.open(), client.open()
    client.turn()
    client.loop.now -= BUSY_GAP_S / 2
    client.tunnel.end_stream(one)
    client.tunnel.reset(two)
    client.tunnel.drain()
    assert StreamEnded in [kind for write in client.turn() for kind in kinds(write)]


def test_delayed_end_stream_is_sent_before_the_tunnel_is_aborted(client: End) -> None:
    one, _ = client.open(), client.open()
    client.turn()
    client.loop.now -= BUSY_GAP_S / 2
    client.tunnel.end_stream(one)
    client.tunnel.close("deadline")
    (write,) = client.turn()
    assert kinds(write) == [StreamEnded]
