# SPDX-License-Identifier: Apache-2.0
"""Clients that hold connections to the proxy's health port do not block the kubelet's probes."""

from __future__ import annotations

import errno
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.silent_connections import silent_connections
from tests.support.waiting import wait_until
from ztunnel.proxy.io.event_loop import EventLoop
from ztunnel.proxy.process.health_server import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_SOURCE,
    HealthServer,
)

NODE = "127.0.0.1"
PODS = [f"127.0.{1 + number // 200}.{1 + number % 200}" for number in range(300)]
PROBES = 130


class Served:
    """A health server on a loop in a thread."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.sock = socket.create_server(("", 0), backlog=1024)
        self.port: int = self.sock.getsockname()[1]
        self.server = HealthServer(self.loop, self.sock, {"/healthz/live": list}, [NODE])
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            self.loop.turn(0.01)

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self.sock.close()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


def probe(port: int, source: str) -> int:
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=5, source_address=(source, 0)
    )
    try:
        connection.request("GET", "/healthz/live")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


@pytest.mark.parametrize("sources", [PODS[:1], PODS], ids=["one pod", "300 pods"])
@pytest.mark.parametrize("prober", [NODE, "127.9.9.9"], ids=["node", "unknown source"])
def test_silent_connections_do_not_block_probes(
    served: Served, sources: list[str], prober: str
) -> None:
    with silent_connections(served.port, sources, per_second=400) as silent:
        wait_until(lambda: len(silent.opened) > 2 * MAX_CONNECTIONS, "connections")
        statuses = [probe(served.port, prober) for _ in range(PROBES)]
    assert statuses == [200] * PROBES


def test_one_source_holds_its_share_only(served: Served) -> None:
    with silent_connections(served.port, PODS[:1], per_second=400) as silent:
        wait_until(lambda: len(silent.opened) > MAX_CONNECTIONS, "connections")
        assert len(served.server.open) <= MAX_CONNECTIONS_PER_SOURCE


def test_exhausted_descriptors_pause_accepting(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted:
        attempts = 0

        def fileno(self) -> int:
            return served.sock.fileno()

        def accept(self) -> None:
            self.attempts += 1
            raise OSError(errno.EMFILE, "Too many open files")

    exhausted = Exhausted()
    with monkeypatch.context() as patch, socket.create_connection((NODE, served.port)):
        patch.setattr(served.server, "_sock", exhausted)
        wait_until(lambda: exhausted.attempts > 0 or len(served.server.open) > 0, "an attempt")
        with socket.create_connection((NODE, served.port)):
            time.sleep(0.5)
        assert 1 <= exhausted.attempts <= 8
    assert probe(served.port, NODE) == 200
