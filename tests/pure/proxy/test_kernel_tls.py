# SPDX-License-Identifier: Apache-2.0
"""What TLS took arrives, whatever becomes of the socket next; so TLS is not left to the kernel.

The kernel's own TLS would fail the first of these: decision 0022. To try it, `modprobe tls`.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pure.proxy.certs import Authority
from tests.pure.proxy.conftest import Pair
from tests.pure.proxy.harness import DEADLINE
from tests.pure.proxy.test_outbound import ping
from ztunnel.proxy import tls

TRIES = 10  # of which about half end with a record half sent, where the kernel does TLS
COUNTS = Path("/proc/net/tls_stat")  # of this network namespace


def fin(sock: ssl.SSLSocket) -> None:
    sock.shutdown(socket.SHUT_WR)


def close(sock: ssl.SSLSocket) -> None:
    sock.close()


@pytest.mark.parametrize("end", [fin, close])
def test_a_socket_that_ends_while_it_is_full_loses_nothing(
    authority: Authority, end: Callable[[ssl.SSLSocket], None]
) -> None:
    held = tls.credentials(authority.issue("spiffe://cluster.local/ns/test/sa/a"))
    chance = random.Random(7)
    for _ in range(TRIES):
        total, room = chance.randrange(100_000, 400_000), chance.choice((4096, 30_000, 60_000))
        dialled, accepted = _connected(room)
        sender = threading.Thread(target=_send, args=(held.server, accepted, total, end))
        sender.start()
        with held.client.wrap_socket(dialled) as client:
            assert _read_slowly(client) == total
        sender.join(DEADLINE)
        accepted.close()


def _connected(room: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection with little room for what is on the way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        dialled = socket.socket()
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        dialled.settimeout(DEADLINE)
        dialled.connect(listener.getsockname())
        return dialled, listener.accept()[0]


def _send(
    context: ssl.SSLContext,
    sock: socket.socket,
    total: int,
    end: Callable[[ssl.SSLSocket], None],
) -> None:
    """As a tunnel does: without blocking, and what was refused once more from the same buffer."""
    server = context.wrap_socket(sock, server_side=True)
    server.setblocking(False)
    view, sent = memoryview(bytes(total)), 0
    while sent < total:
        try:
            sent += server.send(view[sent:])
        except ssl.SSLWantWriteError:
            time.sleep(0.0005)  # less than it takes to read one record
    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
        server.unwrap()
    end(server)


def _read_slowly(sock: ssl.SSLSocket) -> int:
    got = 0
    while data := sock.recv(8192):
        got += len(data)
        time.sleep(0.001)
    return got


@pytest.mark.skipif(not COUNTS.exists(), reason="no kernel TLS here; modprobe tls")
def test_tunnels_do_not_use_kernel_tls(pair: Pair) -> None:
    before = COUNTS.read_bytes()
    ping(pair)
    assert COUNTS.read_bytes() == before
