# SPDX-License-Identifier: Apache-2.0
"""Workers that share a listener take turns."""

from __future__ import annotations

import socket
import threading
from collections import Counter

from tests.pure.proxy.harness import DEADLINE, fresh_ip, listen
from ztunnel.proxy.listener import Listener
from ztunnel.proxy.loop import Loop

CONNECTIONS = 40


def test_connections_that_come_one_by_one_are_spread_over_the_workers() -> None:
    door = listen(fresh_ip(), 0)
    took: Counter[int] = Counter()
    accepted = threading.Semaphore(0)
    stop = threading.Event()

    def work(index: int) -> None:
        loop = Loop()

        def take(sock: socket.socket) -> None:
            took[index] += 1
            sock.close()
            accepted.release()

        Listener(loop, door.dup(), take, lambda: None, resets=False, shared=True)
        while not stop.is_set():
            loop.turn(0.1)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(CONNECTIONS):
            socket.create_connection(door.getsockname()).close()
            assert accepted.acquire(timeout=DEADLINE)
    finally:
        stop.set()
        for worker in workers:
            worker.join(DEADLINE)
        door.close()
    assert sum(took.values()) == CONNECTIONS
    assert min(took[0], took[1]) >= CONNECTIONS // 4
