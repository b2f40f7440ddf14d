# SPDX-License-Identifier: Apache-2.0
"""Callbacks of a socket pool may use the pool, and one that raises affects no other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from ztunnel.hbone.buffer_budget import BufferBudget
from ztunnel.ipc.messages import PodAdded
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.io.event_loop import EventLoop
from ztunnel.proxy.io.socket_pool import MIN_REQUEST_BATCH, SocketPool
from ztunnel.proxy.local_pod import Pod, add_sockets


@pytest.fixture
def pool() -> Iterator[SocketPool]:
    pool = SocketPool(EventLoop(), lambda count: None)
    yield pool
    pool.close()
    pool._loop.turn(0)


def fresh(count: int) -> list[socket.socket]:
    return [socket.socket() for _ in range(count)]


def test_dial_cancelled_while_waiting_returns_its_socket_and_loses_no_other() -> None:
    loop = EventLoop()
    added = PodAdded(
        pod_uid="uid", workload="w", identity="i", netns_cookie=1, addresses=("10.0.0.1",)
    )
    pod = Pod(loop, added, lambda family, count, udp: None, BufferBudget(0).new_share())
    pool = pod.tcp_pools[4]
    dial = Connector(loop, pool, SocketAddress("192.0.2.1", 1), lambda sock, reason: None)
    dial.start()
    dial.cancel()
    fds = [sock.detach() for sock in fresh(MIN_REQUEST_BATCH)]
    add_sockets(pod, 4, fds, udp=False)
    assert not fds
    assert pool.size == MIN_REQUEST_BATCH
    pod.close("test", abort=True)
    loop.turn(0)


def test_sockets_of_unknown_pods_and_families_are_closed() -> None:
    loop = EventLoop()
    added = PodAdded(
        pod_uid="uid", workload="w", identity="i", netns_cookie=1, addresses=("10.0.0.1",)
    )
    pod = Pod(loop, added, lambda family, count, udp: None, BufferBudget(0).new_share())
    for owner, family in ((None, 4), (pod, 5)):
        fds = [socket.socket().detach()]
        (fd,) = fds
        add_sockets(owner, family, fds, udp=False)
        assert not fds
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_callbacks_may_recycle_and_acquire(pool: SocketPool) -> None:
    served: list[str] = []

    def recycle(sock: socket.socket | None) -> None:
        assert sock is not None
        served.append("recycle")
        pool.recycle(sock)

    def acquire_again(sock: socket.socket | None) -> None:
        served.append("again")
        pool.acquire(recycle)
        recycle(sock)

    def receive(sock: socket.socket | None) -> None:
        assert sock is not None
        served.append("receive")
        pool.recycle(sock)

    for callback in (recycle, acquire_again, recycle, receive):
        pool.acquire(callback)
    pool.add(fresh(1))
    assert served == ["recycle", "again", "recycle", "recycle", "receive", "recycle"]
    assert pool.size == 1


def test_callback_may_close_the_pool(pool: SocketPool) -> None:
    results: list[socket.socket | None] = []

    def close(sock: socket.socket | None) -> None:
        assert sock is not None
        pool.close()
        pool.recycle(sock)

    pool.acquire(close)
    pool.acquire(results.append)
    pool.add(fresh(3))
    assert (results, pool.size) == ([None], 0)


def test_exception_of_a_callback_fails_its_owner_only(pool: SocketPool) -> None:
    failures: list[str] = []

    class Broken:
        def on_socket(self, sock: socket.socket | None) -> None:
            assert sock is not None
            self.sock = sock
            raise RuntimeError("broken")

        def on_failure(self, error: Exception) -> None:
            failures.append(str(error))
            pool.recycle(self.sock)

    results: list[socket.socket | None] = []
    pool.acquire(Broken().on_socket)
    pool.acquire(results.append)
    pool.add(fresh(2))
    (received,) = results
    assert received is not None
    received.close()
    assert failures == ["broken"]
    assert pool.size == 1


def test_waiter_of_the_inbound_set_overtakes_one_that_needs_a_fresh_socket(
    pool: SocketPool,
) -> None:
    fresh_only: list[socket.socket | None] = []
    inbound: list[socket.socket | None] = []
    pool.acquire(fresh_only.append)
    pool.acquire(inbound.append, inbound=True)
    (sock,) = fresh(1)
    pool.recycle(sock, inbound=True)
    assert (fresh_only, inbound) == ([], [sock])
    sock.close()
