# SPDX-License-Identifier: Apache-2.0
"""Many open connections through two workers: errors, and memory per connection.

    python bench/hold.py [--connections 10000] [--seconds 60]

Every connection makes a round trip when it is opened, and repeatedly while it is held. Needs no
root and no BPF, but gcc, and more file descriptors (`ulimit -n`) than connections.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import relay  # noqa: E402
from ztunnel.telemetry.logs import configure_logs  # noqa: E402


def trip(sock: socket.socket) -> None:
    sock.sendall(b"x" * 64)
    got = 0
    while got < 64:
        count = len(sock.recv(64))
        if not count:
            raise ConnectionError("the connection ended")
        got += count


def resident(pid: int) -> int:
    """Memory in KiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def opened(setup: relay.Setup) -> socket.socket:
    """A connection that has made its first round trip."""
    sock = setup.meshed()
    sock.settimeout(10)
    sock.sendall(relay.ECHO)
    trip(sock)
    return sock


def hold(setup: relay.Setup, count: int, seconds: float) -> None:
    opened(setup)
    before = [resident(pid) for pid in setup.workers]
    socks = [opened(setup) for _ in range(count)]
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
    with open(os.devnull, "w", encoding="utf-8") as sys.stderr:
        configure_logs("json")
        setup = relay.Setup(None)
        try:
            hold(setup, options.connections, options.seconds)
        finally:
            setup.stop()


if __name__ == "__main__":
    main()
