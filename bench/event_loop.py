# SPDX-License-Identifier: Apache-2.0
"""A TCP relay on the proxy's event loop, on asyncio and on uvloop: client → relay → server.

    python -m bench.event_loop [--rounds 5]

Loopback, without root. The relays do the same and nothing else, so differences are those of the
loops. Variants take turns in each round; the table has medians, and ratios to the proxy's loop.
CPU is that of the relay process for one unit of work. ZTUNNEL_COMPILED=no measures the proxy's loop
interpreted. uvloop comes with the extra `bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable
from typing import ClassVar, cast

import uvloop

from ztunnel import compiled

if __name__ == "__main__":
    compiled.load()  # before the import of the loop

from ztunnel.proxy.io.event_loop import ACCEPT, READ, WRITE, EventLoop

BUFFER_BYTES = 256 * 1024  # one read; asyncio's and uvloop's own size
BULK_BYTES = 1 << 30
ROUND_TRIPS = 4000
CONNECTIONS = 1000
SINK, ECHO = b"S", b"E"  # the first byte selects what the server does
Address = tuple[str, int]

# The proxy's loop


class EpollSide:
    """One of the two sockets of a relayed connection."""

    free_buffers: ClassVar[list[memoryview]] = []  # the proxy pools its buffers, too

    def __init__(self, loop: EventLoop, sock: socket.socket) -> None:
        free = self.free_buffers
        self.buffer = free.pop() if free else memoryview(bytearray(BUFFER_BYTES))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.loop, self.sock, self.peer = loop, sock, self
        self.unsent = self.buffer[:0]  # of the peer's buffer
        self.ended = False
        loop.register(sock.fileno(), READ, self)

    def on_ready(self, mask: int) -> None:
        if mask & WRITE:
            self.peer.forward(self.unsent, self)
        elif not self.ended:
            size = self.sock.recv_into(self.buffer)
            if size:
                self.forward(self.buffer[:size], self.peer)
            else:
                self.end()

    def forward(self, data: memoryview, to: EpollSide) -> None:
        """Send to the other side; read no further until it has accepted everything."""
        try:
            sent = to.sock.send(data)
        except BlockingIOError:
            sent = 0
        was_blocked, to.unsent = bool(to.unsent), data[sent:]
        if was_blocked is not bool(to.unsent):
            self.loop.modify(self.sock.fileno(), 0 if to.unsent else READ)
            self.loop.modify(to.sock.fileno(), WRITE if to.unsent else READ)

    def end(self) -> None:
        """Forward the end of the stream; close both sockets after the second one."""
        self.ended = True
        if self.peer.ended:
            for side in (self, self.peer):
                self.loop.close(side.sock)
                self.free_buffers.append(side.buffer)
        else:
            self.loop.modify(self.sock.fileno(), 0)
            self.peer.sock.shutdown(socket.SHUT_WR)

    def on_failure(self, error: Exception) -> None:
        for side in (self, self.peer):
            self.loop.close(side.sock)


class EpollListener:
    def __init__(self, loop: EventLoop, sock: socket.socket, server: Address) -> None:
        sock.setblocking(False)
        self.loop, self.sock, self.server = loop, sock, server
        loop.register(sock.fileno(), ACCEPT, self)

    def on_ready(self, mask: int) -> None:
        accepted = EpollSide(self.loop, self.sock.accept()[0])
        dialed = EpollSide(self.loop, socket.create_connection(self.server))
        accepted.peer, dialed.peer = dialed, accepted

    def on_failure(self, error: Exception) -> None:
        self.loop.stop()


def epoll_relay(listener: socket.socket, server: Address) -> None:
    loop = EventLoop()
    EpollListener(loop, listener, server)
    loop.run()


# asyncio and uvloop


class ProtocolSide(asyncio.Protocol):
    """One of the two transports of a relayed connection."""

    def __init__(self, server: Address | None) -> None:
        self.server, self.peer = server, self
        self.early = b""  # received before the other transport was there
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        if self.server is not None:
            self.dial = asyncio.get_running_loop().create_task(self.connect(self.server))

    async def connect(self, server: Address) -> None:
        dialed = socket.create_connection(server)
        dialed.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop, peer = asyncio.get_running_loop(), ProtocolSide(None)
        peer.peer = self
        await loop.create_connection(lambda: peer, sock=dialed)
        self.peer = peer
        peer.transport.write(self.early)

    def data_received(self, data: bytes) -> None:
        if self.peer is self:
            self.early += data
        else:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.peer.ended:
            self.transport.close()
            self.peer.transport.close()
        else:
            self.peer.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.peer.ended:
            self.peer.transport.resume_reading()


async def protocol_relay(listener: socket.socket, server: Address) -> None:
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: ProtocolSide(server), sock=listener) as relay:
        await relay.serve_forever()


async def socket_relay(listener: socket.socket, server: Address) -> None:
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    tasks = set[asyncio.Task[None]]()

    async def copy(source: socket.socket, to: socket.socket) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        while size := await loop.sock_recv_into(source, buffer):
            await loop.sock_sendall(to, buffer[:size])
        to.shutdown(socket.SHUT_WR)

    async def relay(accepted: socket.socket) -> None:
        dialed = socket.create_connection(server)
        for sock in (accepted, dialed):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with accepted, dialed:
            await asyncio.gather(copy(accepted, dialed), copy(dialed, accepted))

    while True:
        accepted, _ = await loop.sock_accept(listener)
        task = loop.create_task(relay(accepted))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


Relay = Callable[[socket.socket, Address], None]
RELAYS: dict[str, Relay] = {
    "ztunnel": epoll_relay,
    "asyncio Protocol": lambda *args: asyncio.run(protocol_relay(*args)),
    "asyncio sockets": lambda *args: asyncio.run(socket_relay(*args)),
    "uvloop Protocol": lambda *args: uvloop.run(protocol_relay(*args)),
    "uvloop sockets": lambda *args: uvloop.run(socket_relay(*args)),
}

# The server and the work


def serve(listener: socket.socket) -> None:
    def connection(sock: socket.socket) -> None:
        with sock:
            mode, buffer = sock.recv(1), bytearray(BUFFER_BYTES)
            while size := sock.recv_into(buffer):
                if mode == ECHO:
                    sock.sendall(memoryview(buffer)[:size])
            sock.sendall(b".")

    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=connection, args=(sock,), daemon=True).start()


def dial(address: Address, mode: bytes) -> socket.socket:
    sock = socket.create_connection(address, timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(mode)
    return sock


def bulk(address: Address) -> float:
    """Gbit/s of one stream."""
    block = memoryview(os.urandom(BUFFER_BYTES))
    with dial(address, SINK) as sock:
        started = time.perf_counter()
        for _ in range(BULK_BYTES // BUFFER_BYTES):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b"."
        return BULK_BYTES * 8 / (time.perf_counter() - started) / 1e9


def round_trips(address: Address) -> float:
    """Median µs of a 64-byte round trip."""
    times, request = [], bytes(64)
    with dial(address, ECHO) as sock:
        for _ in range(ROUND_TRIPS):
            started = time.perf_counter()
            sock.sendall(request)
            assert len(sock.recv(64)) == 64
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def connections(address: Address) -> float:
    """New connections per second, one at a time, each with a round trip and an orderly close."""
    started = time.perf_counter()
    for _ in range(CONNECTIONS):
        with dial(address, ECHO) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b"."
    return CONNECTIONS / (time.perf_counter() - started)


WORKS: dict[str, tuple[Callable[[Address], float], float, str]] = {
    "bulk, Gbit/s": (bulk, BULK_BYTES / 1e9, "ms/GB"),
    "64-byte round trip p50, µs": (round_trips, ROUND_TRIPS / 1e3, "µs"),
    "connections/s": (connections, CONNECTIONS / 1e3, "µs"),
}


def fork(run: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(1)
    return pid


def stop(pid: int) -> float:
    """Kill a child; its CPU seconds."""
    os.kill(pid, signal.SIGKILL)
    usage = os.wait4(pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def measure(relay: Relay, work: Callable[[Address], float], server: Address) -> tuple[float, float]:
    """What `work` returns through a relay process, and the process's CPU seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        pid = fork(lambda: relay(listener, server))
        try:
            value = work(address)
        finally:
            cpu = stop(pid)
    return value, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print("proxy's loop:", "compiled" if compiled.is_loaded() else "interpreted")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = fork(lambda: serve(listener))
        try:
            for title, (work, units, cpu_unit) in WORKS.items():
                found: dict[str, list[tuple[float, float]]] = {name: [] for name in RELAYS}
                for _ in range(rounds):
                    for name, relay in RELAYS.items():
                        found[name].append(measure(relay, work, listener.getsockname()))
                show(title, cpu_unit, units, found)
        finally:
            stop(server)


def show(
    title: str, cpu_unit: str, units: float, found: dict[str, list[tuple[float, float]]]
) -> None:
    """Medians, and medians of the ratios to the proxy's loop in the same round."""
    print(f"\n{title:28}{'value':>10}{'ratio':>8}{'CPU ' + cpu_unit:>12}{'ratio':>8}")
    ours = found["ztunnel"]
    for name, runs in found.items():
        value, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        value_ratio, cpu_ratio = (
            statistics.median(run[i] / base[i] for run, base in zip(runs, ours, strict=True))
            for i in (0, 1)
        )
        cpu_per_unit = cpu * 1e3 / units
        print(f"{name:28}{value:10.1f}{value_ratio:8.2f}{cpu_per_unit:12.1f}{cpu_ratio:8.2f}")


if __name__ == "__main__":
    main()
