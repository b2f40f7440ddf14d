# SPDX-License-Identifier: Apache-2.0
"""A UDP server with one behavior per port. Runs in a pod.

Each port has a socket per family, except 7102.

7100 echo | 7101 returns the source address | 7102 the same on a dual-stack socket
7103 replies from a socket that it connects to the client, and echoes on it
7104 counts: answers `count` with the datagrams and bytes received
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable

Handler = Callable[[socket.socket], None]
_counted = [0, 0]
_connected: dict[tuple[str, int], socket.socket] = {}


def echo(sock: socket.socket) -> None:
    data, source = sock.recvfrom(65536)
    sock.sendto(data, source)


def whoami(sock: socket.socket) -> None:
    _, source = sock.recvfrom(65536)
    sock.sendto(json.dumps(source[:2]).encode(), source)


def by_connected(sock: socket.socket) -> None:
    data, source = sock.recvfrom(65536)
    if source not in _connected:
        own = _bound(sock.getsockname()[0], 7103)
        own.connect(source)
        _connected[source] = own
        servers[own] = echo_connected
    said = {"heard": data.decode(), "getpeername": _connected[source].getpeername()[:2]}
    _connected[source].send(json.dumps(said).encode())


def echo_connected(sock: socket.socket) -> None:
    sock.send(sock.recv(65536))


def count(sock: socket.socket) -> None:
    data, source = sock.recvfrom(65536)
    if data == b"count":
        sock.sendto(json.dumps(_counted).encode(), source)
        return
    _counted[0] += 1
    _counted[1] += len(data)


def _bound(host: str, port: int, *, dual: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    if ":" in host:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    sock.bind((host, port))
    return sock


servers: dict[socket.socket, Handler] = {}

if __name__ == "__main__":
    for host in ("0.0.0.0", "::"):
        servers |= {
            _bound(host, 7100): echo,
            _bound(host, 7101): whoami,
            _bound(host, 7103): by_connected,
            _bound(host, 7104): count,
        }
    servers[_bound("::", 7102, dual=True)] = whoami
    print("serving", flush=True)
    while True:
        for ready in select.select(list(servers), [], [])[0]:
            try:
                servers[ready](ready)
            except OSError as error:
                print(f"{servers[ready].__name__}: {error}", flush=True)
