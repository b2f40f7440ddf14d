# SPDX-License-Identifier: Apache-2.0
"""Attacks other pods and the nodes from a pod without privileges until stdin ends.

usage: hostile_client.py SEED VICTIM_HOST VICTIM_PORT BACKEND_HOST BACKEND_PORT NODE_HOST ...

BACKEND runs `flood.py serve`. At the end, prints a JSON object: `attacks`, the number of each kind,
and `answered`, how many requests the victim answered although policy denies them.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

HBONE, HEALTH_PORTS = 15008, (15020, 15021)
MAX_HELD = 300  # stalled connections at once
PAUSE_S = 0.02  # between two attacks

ClientHello = bytes.fromhex("16030100050100000100")  # truncated
QUERY = bytes.fromhex("000001000001000000000000") + b"\x20" + b"x" * 32 + b"\x04evil\0\0\1\0\1"


class Attacker:
    """One method per attack; each is bounded and swallows the errors that it provokes."""

    def __init__(
        self, seed: int, victim: tuple[str, int], backend: tuple[str, int], nodes: list[str]
    ) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.answered = 0
        self._victim, self._backend, self._nodes = victim, backend, nodes
        self._held: list[socket.socket] = []
        self._attacks: list[Callable[[], Awaitable[None]]] = [
            self.stall_readers,
            self.reset_connections,
            self.request_denied,
            self.hold_silent_handshakes,
            self.send_garbage_to_hbone,
            self.occupy_health_ports,
            self.query_names,
            self.spray_datagrams,
        ]

    async def run_one(self) -> None:
        attack = self.random.choice(self._attacks)
        self.counts[attack.__name__] += 1
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            await asyncio.wait_for(attack(), 5)

    async def stall_readers(self) -> None:
        for _ in range(10):
            self._hold(await self._connect(self._backend))

    async def reset_connections(self) -> None:
        for _ in range(20):
            sock = await self._connect(self._victim)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()

    async def request_denied(self) -> None:
        reader, writer = await asyncio.open_connection(*self._victim)
        try:
            writer.write(b"GET / HTTP/1.1\r\nhost: victim\r\n\r\n")
            if await reader.read(1):
                self.answered += 1
        finally:
            writer.close()

    async def hold_silent_handshakes(self) -> None:
        for _ in range(5):
            self._hold(await self._connect((self._victim[0], HBONE)))

    async def send_garbage_to_hbone(self) -> None:
        sock = await self._connect((self._victim[0], HBONE))
        first = self.random.choice([ClientHello, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""])
        await asyncio.get_running_loop().sock_sendall(sock, first + self.random.randbytes(20_000))
        sock.close()

    async def occupy_health_ports(self) -> None:
        for _ in range(10):
            target = self.random.choice(self._nodes), self.random.choice(HEALTH_PORTS)
            self._hold(await self._connect(target))

    async def query_names(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        lines = Path("/etc/resolv.conf").read_text().splitlines()
        server = next(line.split()[1] for line in lines if line.startswith("nameserver"))
        sock.connect((server, 53))
        for _ in range(40):
            sock.send(self.random.randbytes(2) + QUERY[2:])
        sock.close()

    async def spray_datagrams(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        for _ in range(100):
            sock.sendto(b"x" * 900, (self._victim[0], self.random.randrange(1024, 60000)))
        sock.close()

    async def _connect(self, target: tuple[str, int]) -> socket.socket:
        sock = socket.socket(socket.AF_INET)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, target)
        except BaseException:
            sock.close()
            raise
        return sock

    def _hold(self, sock: socket.socket) -> None:
        self._held.append(sock)
        while len(self._held) > MAX_HELD:
            self._held.pop(self.random.randrange(len(self._held))).close()


async def main(attacker: Attacker) -> None:
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print("started", flush=True)
    while not ended.done():
        await attacker.run_one()
        await asyncio.sleep(PAUSE_S)
    print(json.dumps({"attacks": attacker.counts, "answered": attacker.answered}), flush=True)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seed, *addresses = sys.argv[1:]
    made = Attacker(
        int(seed),
        (addresses[0], int(addresses[1])),
        (addresses[2], int(addresses[3])),
        addresses[4:],
    )
    asyncio.run(main(made))
