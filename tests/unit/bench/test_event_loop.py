# SPDX-License-Identifier: Apache-2.0
"""Every relay of bench/event_loop.py forwards the same bytes and both ends of stream."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from bench import event_loop

SIZE = 3 * event_loop.BUFFER_BYTES + 17


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = event_loop.fork(lambda: event_loop.serve(listener))
        try:
            yield listener.getsockname()
        finally:
            event_loop.stop(pid)


def echo(address: tuple[str, int]) -> float:
    sent = bytes(range(256)) * (SIZE // 256 + 1)
    with event_loop.dial(address, event_loop.ECHO) as sock:
        received = bytearray()
        for start in range(0, len(sent), 64 * 1024):
            piece = sent[start : start + 64 * 1024]
            sock.sendall(piece)
            expected = len(received) + len(piece)
            while len(received) < expected:
                data = sock.recv(expected - len(received))
                assert data
                received += data
        assert received == sent
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b"."
        assert sock.recv(1) == b""
    return 1.0


@pytest.mark.parametrize("name", event_loop.RELAYS)
def test_relay_forwards_data_and_both_ends_of_stream(name: str, server: tuple[str, int]) -> None:
    value, cpu = event_loop.measure(event_loop.RELAYS[name], echo, server)
    assert value == 1.0
    assert cpu >= 0
