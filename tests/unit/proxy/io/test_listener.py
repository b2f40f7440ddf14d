# SPDX-License-Identifier: Apache-2.0
"""Workers that share a listener take turns."""

from __future__ import annotations

import platform
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.unit.proxy.harness import DEADLINE, fresh_ip, listen
from ztunnel.proxy.io.event_loop import EventLoop
from ztunnel.proxy.io.listener import Listener

CONNECTIONS = 40
EPOLL_WAIT = {"x86_64": "232", "aarch64": "22"}.get(platform.machine())  # system call numbers


def waits(thread: threading.Thread) -> bool:
    """Whether a worker sleeps in epoll_wait: the kernel skips one that runs."""
    path = Path(f"/proc/self/task/{thread.native_id}/syscall")
    return path.read_text(encoding="ascii").split()[0] == EPOLL_WAIT


@pytest.mark.skipif(EPOLL_WAIT is None, reason="number of epoll_wait not known here")
def test_sequential_connections_are_spread_over_the_workers() -> None:
    listener = listen(fresh_ip(), 0)
    counts: Counter[int] = Counter()
    accepted = threading.Semaphore(0)
    stop = threading.Event()

    def work(index: int) -> None:
        loop = EventLoop()

        def on_accepted(sock: socket.socket) -> None:
            counts[index] += 1
            sock.close()
            accepted.release()

        Listener(loop, listener.dup(), on_accepted, lambda: None, resets=False, shared=True)
        while not stop.is_set():
            loop.turn(2.0)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(CONNECTIONS):
            wait_until(lambda: all(map(waits, workers)), "both to wait")
            socket.create_connection(listener.getsockname()).close()
            assert accepted.acquire(timeout=DEADLINE)
    finally:
        stop.set()
        for worker in workers:
            worker.join(DEADLINE)
        listener.close()
    assert sum(counts.values()) == CONNECTIONS
    assert min(counts[0], counts[1]) >= CONNECTIONS // 4
