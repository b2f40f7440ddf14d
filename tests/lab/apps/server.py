# SPDX-License-Identifier: Apache-2.0
"""A TCP server with one behavior per port, on both families.

7000 echo | 7001 the addresses that accept() and getpeername() return | 7002 digest of all until FIN
7003 sends as many bytes as the first line requests, then FIN | 7004 resets after the first byte
7005 never reads | 7006 sends FIN at once, then reads and logs the number of bytes

With the argument `behind` it only echoes, on 127.0.0.1:8000: an app behind a sidecar.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import sys
from collections.abc import Awaitable, Callable

BLOCK = bytes(range(256)) * 256
Handler = Callable[[socket.socket, tuple[str, int]], Awaitable[None]]


def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def echo(sock: socket.socket, _: tuple[str, int]) -> None:
    while data := await loop().sock_recv(sock, 65536):
        await loop().sock_sendall(sock, data)


async def whoami(sock: socket.socket, peer: tuple[str, int]) -> None:
    said = {
        "accept": list(peer[:2]),
        "getpeername": list(sock.getpeername()[:2]),
        "getsockname": list(sock.getsockname()[:2]),
    }
    await loop().sock_sendall(sock, json.dumps(said).encode())


async def digest(sock: socket.socket, _: tuple[str, int]) -> None:
    total, size = hashlib.sha256(), 0
    while data := await loop().sock_recv(sock, 1 << 18):
        total.update(data)
        size += len(data)
    await loop().sock_sendall(sock, f"{size} {total.hexdigest()}\n".encode())


async def source(sock: socket.socket, _: tuple[str, int]) -> None:
    line = b""
    while not line.endswith(b"\n"):
        line += await loop().sock_recv(sock, 64)
    left = int(line)
    while left:
        block = BLOCK[: min(left, len(BLOCK))]
        await loop().sock_sendall(sock, block)
        left -= len(block)


async def reset(sock: socket.socket, _: tuple[str, int]) -> None:
    await loop().sock_recv(sock, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def stall(sock: socket.socket, _: tuple[str, int]) -> None:
    await asyncio.sleep(3600)


async def fin_first(sock: socket.socket, _: tuple[str, int]) -> None:
    sock.shutdown(socket.SHUT_WR)
    size = 0
    while data := await loop().sock_recv(sock, 65536):
        size += len(data)
    print(f"fin-first {size}", flush=True)


def everywhere(port: int) -> socket.socket:
    return socket.create_server(
        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    )


async def serve(listener: socket.socket, handler: Handler) -> None:
    listener.setblocking(False)
    running: set[asyncio.Task[None]] = set()
    while True:
        sock, peer = await loop().sock_accept(listener)
        task = asyncio.create_task(handled(handler, sock, peer))
        running.add(task)
        task.add_done_callback(running.discard)


async def handled(handler: Handler, sock: socket.socket, peer: tuple[str, int]) -> None:
    with sock:
        try:
            await handler(sock, peer)
        except OSError as error:
            print(f"{handler.__name__} {error}", flush=True)


async def main() -> None:
    handlers: dict[int, Handler] = {
        7000: echo,
        7001: whoami,
        7002: digest,
        7003: source,
        7004: reset,
        7005: stall,
        7006: fin_first,
    }
    served = (serve(everywhere(port), handler) for port, handler in handlers.items())
    await asyncio.gather(*served)


if __name__ == "__main__":
    if sys.argv[1:] == ["behind"]:
        asyncio.run(serve(socket.create_server(("127.0.0.1", 8000), backlog=1024), echo))
    else:
        asyncio.run(main())
