# SPDX-License-Identifier: Apache-2.0
"""Kernel TLS loses data, which is why workers encrypt in user space (decision 0022).

This tests the kernel, not ztunnel. If it fails, the kernel no longer loses data; reconsider the
decision.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from tests.support.certificates import Authority

OP_ENABLE_KTLS = 1 << 3  # OpenSSL 3's SSL_OP_ENABLE_KTLS; Python names it from 3.12 on
TRIES = 10  # about every third ends with a partially sent record
DEADLINE = 10.0

pytestmark = pytest.mark.skipif(
    not Path("/proc/net/tls_stat").exists(), reason="no kernel TLS here; modprobe tls"
)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    issued = Authority().issue("spiffe://cluster.local/ns/test/sa/a")
    path = tmp_path_factory.mktemp("kernel-tls") / "pem"
    path.write_bytes(issued.key_pem + b"\n" + issued.chain_pem)
    return path


@pytest.mark.parametrize("closes", [False, True], ids=["fin", "close"])
def test_kernel_tls_drops_the_rest_of_a_record_that_it_reported_as_sent(
    pem: Path, closes: bool
) -> None:
    assert _lost(pem, by_kernel=False, closes=closes) == 0
    assert _lost(pem, by_kernel=True, closes=closes) > 0


def _lost(pem: Path, *, by_kernel: bool, closes: bool) -> int:
    """Bytes of complete transfers that did not arrive."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.options |= OP_ENABLE_KTLS if by_kernel else 0
    chance, lost = random.Random(7), 0
    for _ in range(TRIES):
        total, room = chance.randrange(100_000, 400_000), chance.choice((4096, 30_000, 60_000))
        dialed, accepted = _connected(room)
        sender = threading.Thread(target=_send, args=(context, accepted, total, closes))
        sender.start()
        reader = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        reader.check_hostname = False
        reader.verify_mode = ssl.CERT_NONE
        with reader.wrap_socket(dialed) as client:
            lost += total - _read_slowly(client)
        sender.join(DEADLINE)
    return lost


def _connected(room: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        dialed = socket.socket()
        dialed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        dialed.settimeout(DEADLINE)
        dialed.connect(listener.getsockname())
        return dialed, listener.accept()[0]


def _send(context: ssl.SSLContext, sock: socket.socket, total: int, closes: bool) -> None:
    """Send without blocking; repeat refused data from the same buffer."""
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
    if not closes:
        server.shutdown(socket.SHUT_WR)
        time.sleep(0.2)  # time for the kernel to send data that it holds
    server.close()


def _read_slowly(sock: ssl.SSLSocket) -> int:
    got = 0
    while data := sock.recv(8192):
        got += len(data)
        time.sleep(0.001)
    return got
