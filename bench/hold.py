# SPDX-License-Identifier: Apache-2.0
"""Many connections held open through two workers: errors, and memory for each.

    python bench/hold.py [--connections 10000] [--seconds 60]

Every connection makes a round trip when it is opened, and again and again while it is held.
No root, no BPF. Needs as many descriptors (`ulimit -n`) as connections, and some.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import relay
from ztunnel.telemetry.logs import configure_logs


def echo(listener: socket.socket) -> None:
    """Serve all connections at once."""
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    served: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                served[sock.fileno()] = sock
                epoll.register(sock, select.EPOLLIN)
            elif data := served[fd].recv(4096):
                served[fd].sendall(data)
            else:
                served.pop(fd).close()


def trip(sock: socket.socket) -> None:
    sock.sendall(b"x" * 64)
    got = 0
    while got < 64:
        count = len(sock.recv(64))
        if not count:
            raise ConnectionError("the connection ended")
        got += count


def resident(pid: int) -> int:
    """KiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def hold(setup: relay.Setup, count: int, seconds: float) -> None:
    trip(setup.meshed())
    before = [resident(pid) for pid in setup.workers]
    socks = []
    for _ in range(count):
        sock = setup.meshed()
        sock.settimeout(10)
        trip(sock)
        socks.append(sock)
    end, trips, errors = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        for sock in socks:
            try:
                trip(sock)
                trips += 1
            except OSError:
                errors += 1
    print(f"{count} connections held {seconds:.0f} s: {trips} round trips, {errors} errors")
    for name, pid, idle in zip(("client's", "server's"), setup.workers, before, strict=True):
        grown = resident(pid) - idle
        print(f"{name} worker: idle {idle / 1024:.1f} MiB, {grown / count:.2f} KiB a connection")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    relay.serve = echo
    with open(os.devnull, "w", encoding="utf-8") as sys.stderr:
        configure_logs("json")
        setup = relay.Setup(None)
        try:
            hold(setup, options.connections, options.seconds)
        finally:
            setup.stop()


if __name__ == "__main__":
    main()
