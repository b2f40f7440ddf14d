# SPDX-License-Identifier: Apache-2.0
"""Fairness between a small request and a bulk stream of one tunnel, in turns and bytes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.unit.proxy.fake_session import FakeSession, NullOwner
from ztunnel.hbone.buffer_budget import BufferBudget
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.constants import BUFFER_BUDGET_BYTES
from ztunnel.hbone.events import DataReceived
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.conntrack.record import Direction, Record
from ztunnel.proxy.conntrack.tracker import make_peer
from ztunnel.proxy.io.buffers import BUFFER_BYTES, BufferPool
from ztunnel.proxy.io.event_loop import READ, EventLoop
from ztunnel.proxy.tunnel.stream_relay import APP_EVENTS, StreamRelay
from ztunnel.proxy.tunnel.tunnel import Tunnel

CONNECT = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]


class Side:
    """One tunnel over a FakeSession, with apps; the peer is a codec."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        mine, self.other = socket.socketpair()
        self.session = FakeSession(mine)
        self.socks = [mine, self.other]
        self.loop.register(mine.fileno(), READ, NullOwner())  # type: ignore[arg-type]
        self.tunnel = Tunnel(
            self.loop,
            BufferPool(),
            self.session,  # type: ignore[arg-type]
            Role.CLIENT,
            peer="spiffe://td/ns/n/sa/s",
            owner=NullOwner(),
            share=BufferBudget(BUFFER_BUDGET_BYTES).new_share(),
        )
        self.peer = Connection(Role.SERVER)
        self.sync()

    def sync(self) -> list[DataReceived]:
        """Exchange everything written between tunnel and peer; returns the peer's DATA events."""
        self.loop.turn(0)
        octets, self.session.written = b"".join(self.session.written), []
        events = self.peer.receive(memoryview(octets), 0.0)
        self.tunnel._dispatch(
            self.tunnel.connection.receive(memoryview(self.peer.take_output()), 0)
        )
        return [event for event in events if isinstance(event, DataReceived)]

    def app(self) -> tuple[socket.socket, int]:
        """The socket of a new app, and the ID of its stream."""
        ours, theirs = socket.socketpair()
        self.socks += [ours, theirs]
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BUFFER_BYTES)
        unknown = make_peer(SocketAddress("127.0.0.1", 1), None)
        record = Record(
            id=1, direction=Direction.OUTBOUND, source=unknown, destination=unknown, started=0.0
        )
        relay = StreamRelay(
            self.loop, self.tunnel, 0, ours, record=record, ended=lambda sock, error: None
        )
        relay.stream_id = self.tunnel.open(CONNECT, relay)
        self.sync()
        self.peer.respond(relay.stream_id, 200)
        self.loop.register(ours.fileno(), APP_EVENTS, relay)
        relay.begin()
        self.sync()
        return theirs, relay.stream_id


@pytest.fixture
def side() -> Iterator[Side]:
    one = Side()
    yield one
    for sock in one.socks:
        sock.close()


def feed(bulk: socket.socket) -> None:
    """Fill the socket of the bulk app."""
    try:
        while True:
            bulk.send(bytes(64 * 1024))
    except BlockingIOError:
        return


def test_small_request_waits_for_at_most_one_buffer_of_bulk_data(side: Side) -> None:
    (bulk, bulk_id), (small, small_id) = side.app(), side.app()
    for _ in range(20):
        feed(bulk)
        small.send(b"request")
        arrived = side.sync()
        ids = [data.stream_id for data in arrived]
        assert small_id in ids
        before = arrived[: ids.index(small_id)]
        assert sum(len(data.payload) for data in before) <= 2 * BUFFER_BYTES
        for data in arrived:
            side.peer.consumed(data.stream_id, len(data.payload))
    assert bulk_id in ids


def test_small_request_is_sent_at_once_after_a_blocked_write(side: Side) -> None:
    (bulk, _), (small, small_id) = side.app(), side.app()
    side.session.stuck = True
    for _ in range(5):
        feed(bulk)
        side.loop.turn(0)
    small.send(b"request")
    side.loop.turn(0)
    side.session.stuck = False
    arrived = side.sync()
    assert small_id in [data.stream_id for data in arrived]
