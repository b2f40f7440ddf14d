# SPDX-License-Identifier: Apache-2.0
"""What two applications observe of each other through two proxies."""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.harness import DEADLINE
from ztunnel.hbone.constants import (
    CONNECTION_WINDOW_BYTES,
    MAX_CONNECTION_WINDOW_BYTES,
    MAX_HELD_BYTES,
)
from ztunnel.proxy.handlers.inbound import HboneConnection
from ztunnel.proxy.tunnel.stream_relay import StreamRelay

MIB = 1 << 20
RST = struct.pack("ii", 1, 0)


def connect(pair: Pair) -> tuple[socket.socket, socket.socket]:
    client = pair.a.dial()
    return client, pair.app.accept()


def send_all(sock: socket.socket, total: int) -> Callable[[], str]:
    """Send pseudo-random bytes and FIN in a thread; calling the result returns their digest."""
    digest = hashlib.sha256()

    def run() -> None:
        block = random.Random(1).randbytes(MIB)
        for _ in range(total // MIB):
            digest.update(block)
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def finish() -> str:
        thread.join(60)
        return digest.hexdigest()

    return finish


def digest_of(sock: socket.socket) -> str:
    digest = hashlib.sha256()
    while data := sock.recv(MIB):
        digest.update(data)
    return digest.hexdigest()


def test_200_mb_arrive_unchanged_in_both_directions(pair: Pair) -> None:
    client, server = connect(pair)
    up, down = send_all(client, 200 * MIB), send_all(server, 200 * MIB)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(digest_of(client)))
    reader.start()
    assert digest_of(server) == up()
    reader.join(60)
    assert got == [down()]


def test_client_half_close_reaches_server_which_still_replies(pair: Pair) -> None:
    client, server = connect(pair)
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert server.recv(100) == b"question"
    assert server.recv(100) == b""
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"
    server.close()
    assert client.recv(100) == b""
    wait_until(lambda: pair.a.context.tracker.stats.closed == 1)
    assert pair.a.context.tracker.stats.failed == 0


def test_server_half_close_reaches_client_which_still_sends(pair: Pair) -> None:
    client, server = connect(pair)
    server.sendall(b"banner")
    server.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b"banner"
    assert client.recv(100) == b""
    client.sendall(b"late")
    client.close()
    assert server.recv(100) == b"late"
    assert server.recv(100) == b""


def test_request_and_fin_sent_before_the_tunnel_exists_arrive(pair: Pair) -> None:
    client = pair.a.dial()
    client.sendall(b"early")
    client.shutdown(socket.SHUT_WR)
    server = pair.app.accept()
    assert server.recv(100) == b"early"
    assert server.recv(100) == b""


def test_small_message_needs_one_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[StreamRelay] = []
    monkeypatch.setattr(StreamRelay, "_defer_pump", again.append)  # another read
    client, server = connect(pair)
    for _ in range(10):
        client.sendall(b"question")
        assert server.recv(8) == b"question"
        server.sendall(b"answer")
        assert client.recv(6) == b"answer"
    assert again == []


@pytest.mark.parametrize("resetting", ["client", "server"])
def test_reset_is_forwarded_as_reset(pair: Pair, resetting: str) -> None:
    client, server = connect(pair)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    ours, other = (client, server) if resetting == "client" else (server, client)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    ours.close()
    with pytest.raises(ConnectionResetError):
        other.recv(1)


def test_bytes_before_a_reset_are_delivered_first(pair: Pair) -> None:
    client, server = connect(pair)
    client.sendall(b"unread")  # turns the server's close into a reset
    server.sendall(b"all of the answer")
    assert client.recv(100) == b"all of the answer"
    wait_until(lambda: socket_has(server, 6))
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(100)


def socket_has(sock: socket.socket, count: int) -> bool:
    return len(sock.recv(count, socket.MSG_PEEK)) == count


def test_connection_refused_by_the_app_is_a_reset_not_a_clean_end(pair: Pair) -> None:
    pair.app.close()
    with pytest.raises(ConnectionResetError):
        pair.a.dial().recv(1)


def test_loss_of_the_tunnel_resets_both_applications(pair: Pair) -> None:
    client, server = connect(pair)
    client.sendall(b"x")
    server.recv(1)
    (_, tunnel), *_ = pair.a.context.pool.tunnels()
    pair.a.in_loop(lambda: tunnel.close("test"))
    for sock in (client, server):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_stalled_reader_stops_the_writer(pair: Pair) -> None:
    client, server = connect(pair)
    client.settimeout(1.0)
    sent = 0
    block = bytes(MIB)
    with contextlib.suppress(TimeoutError):
        while sent < 100 * MIB:
            sent += client.send(block)
    assert sent < 40 * MIB  # socket buffers and the 4 MiB window of the stream
    client.settimeout(DEADLINE)
    got = 0
    while got < sent:
        got += len(server.recv(MIB))
    assert got == sent


def test_stalled_stream_does_not_block_another_stream(pair: Pair) -> None:
    stalled, _unread = connect(pair)
    stalled.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        for _ in range(100):
            stalled.send(bytes(MIB))
    client, server = connect(pair)
    client.sendall(b"small")
    assert server.recv(100) == b"small"
    assert len(pair.a.context.pool.tunnels()) == 1


def stall(client: socket.socket) -> None:
    """Send until nothing more is accepted."""
    client.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        for _ in range(100):
            client.send(bytes(MIB))


def test_six_stalled_streams_do_not_block_a_seventh(pair: Pair) -> None:
    streams = [connect(pair) for _ in range(6)]  # 24 MiB of windows; the connection has 16
    for client, _unread in streams:
        stall(client)
    client, server = connect(pair)
    client.sendall(b"small")
    assert server.recv(100) == b"small"
    assert len(pair.a.context.pool.tunnels()) == 1


def held(pair: Pair) -> int:
    """Bytes that node b buffers for applications that do not read."""
    (tunnels,) = [
        [live._tunnel for live in pod.live if isinstance(live, HboneConnection)]
        for pod in pair.b.worker.pods.values()
    ]
    streams = [stream for tunnel in tunnels if tunnel for stream in tunnel.streams.values()]
    return sum(len(stream._pending) for stream in streams if isinstance(stream, StreamRelay))


def test_200_stalled_streams_use_bounded_memory_and_lose_nothing(pair: Pair) -> None:
    streams = [connect(pair) for _ in range(200)]
    sent = send_until_stuck([client for client, _ in streams])
    tunnels = len(pair.a.context.pool.tunnels())
    waiting, budget = held(pair), pair.b.context.budget
    assert sum(sent) > waiting > tunnels * CONNECTION_WINDOW_BYTES
    assert waiting <= tunnels * (MAX_HELD_BYTES + MAX_CONNECTION_WINDOW_BYTES)
    assert waiting <= budget.limit // 2 + tunnels * CONNECTION_WINDOW_BYTES
    assert budget.used <= budget.limit // 2
    for client, _ in streams:
        client.close()
    assert read_all([server for _, server in streams]) == sent


def read_all(servers: list[socket.socket]) -> list[int]:
    """The number of bytes that each socket received until its end."""
    got = {server.fileno(): 0 for server in servers}
    by_fd = {server.fileno(): server for server in servers}
    poll = select.poll()
    for server in servers:
        poll.register(server, select.POLLIN)
    while by_fd:
        ready = poll.poll(DEADLINE * 1000)
        assert ready, "nothing arrived"
        for fd, _ in ready:
            count = len(by_fd[fd].recv(MIB))
            got[fd] += count
            if not count:
                poll.unregister(by_fd.pop(fd))
    return list(got.values())


def send_until_stuck(clients: list[socket.socket]) -> list[int]:
    """How much each socket sent until none could send more."""
    sent = {client.fileno(): 0 for client in clients}
    by_fd = {client.fileno(): client for client in clients}
    poll = select.poll()
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        client.setblocking(False)
        poll.register(client, select.POLLOUT)
    while ready := poll.poll(500):
        for fd, _ in ready:
            with contextlib.suppress(BlockingIOError):
                sent[fd] += by_fd[fd].send(bytes(64 * 1024))
    return list(sent.values())


def test_destination_without_hbone_is_reached_in_plaintext(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pair.a.target = type(pair.a.target)(*server.getsockname())
        client = pair.a.dial()
        accepted, peer = server.accept()
        assert peer[0] == pair.a.ip
        total = 20 * MIB
        digest = send_all(client, total)
        assert digest_of(accepted) == digest()
        accepted.sendall(b"done")
        accepted.close()
        assert client.recv(100) == b"done"
        assert client.recv(100) == b""
    assert pair.a.context.pool.tunnels() == []


def test_refused_plaintext_destination_is_a_reset(pair: Pair) -> None:
    pair.a.target = type(pair.a.target)("127.0.0.1", 1)
    with pytest.raises(ConnectionResetError):
        pair.a.dial().recv(1)


def test_client_address_is_set_on_the_apps_connection(pair: Pair) -> None:
    client, _server = connect(pair)
    assert [(address.ip, address.port) for address in pair.b.client_addresses] == [
        client.getsockname()
    ]


def test_many_connections_share_one_tunnel(pair: Pair) -> None:
    for _ in range(50):
        client, server = connect(pair)
        client.sendall(b"ping")
        assert server.recv(4) == b"ping"
        server.close()
        assert client.recv(1) == b""
        client.close()
    ((_, tunnel),) = pair.a.context.pool.tunnels()
    assert tunnel.stream_count == 50


def test_more_than_100_at_once_open_a_second_tunnel(pair: Pair) -> None:
    clients = [pair.a.dial() for _ in range(150)]
    servers = [pair.app.accept() for _ in clients]
    for client in clients:
        client.sendall(b"x")
    for server in servers:
        assert server.recv(1) == b"x"
    assert len(pair.a.context.pool.tunnels()) == 2


def test_1000_open_connections_all_work(pair: Pair) -> None:
    streams = [connect(pair) for _ in range(1000)]
    for _ in range(2):
        for client, server in streams:
            client.sendall(b"ping")
            assert server.recv(4) == b"ping"
            server.sendall(b"pong")
            assert client.recv(4) == b"pong"
    assert pair.a.context.tracker.stats.failed == pair.b.context.tracker.stats.failed == 0
    assert len(pair.a.context.tracker.live()) == 1000


def test_sockets_are_recycled_while_the_agent_is_down(pair: Pair) -> None:
    for node in (pair.a, pair.b):
        node.agent.stop()
    for _ in range(100):
        client, server = connect(pair)
        client.sendall(b"ping")
        assert server.recv(4) == b"ping"
        client.close()
        assert server.recv(1) == b""
        server.close()
