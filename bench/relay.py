# SPDX-License-Identifier: Apache-2.0
"""Measures client → proxy → HBONE → proxy → server on loopback, and plain TCP in the same run.

    python bench/relay.py [--rounds 5] [--only crowd] [--profile DIR]

Measures the cost of the relay alone: needs no root and no BPF, but gcc for the load generator.
Prints medians, ratios to plain TCP, and the CPU time of both workers per unit of work, which
depends least on other load. With --profile both workers run under cProfile and write `a.prof` and
`b.prof` to that directory. ZTUNNEL_COMPILED=no measures the sources even if compiled modules exist.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import resource
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ztunnel import compiled  # noqa: E402

compiled.load()

from bench.comparison.load import Load, build  # noqa: E402
from tests.support.certificates import Authority  # noqa: E402
from tests.support.ports import free_ports  # noqa: E402
from tests.support.waiting import wait_until  # noqa: E402
from tests.unit.proxy.harness import Node, fresh_ip, workload  # noqa: E402
from ztunnel.mesh.model import SocketAddress  # noqa: E402
from ztunnel.telemetry.logs import configure_logs  # noqa: E402

BLOCK = 256 * 1024
BULK = 1 << 30  # bytes of one bulk round
TRIPS = 4000
CONNECTIONS = 1500
CROWD, CROWD_SECONDS = 16, 1.0  # connections at a time
SINK, ECHO = b"S", b"E"


class Route(NamedTuple):
    """A route to the server: through the mesh, or plain TCP."""

    dial: Callable[[], socket.socket]
    address: tuple[str, int]
    load: Load


Result = tuple[float, float]  # the measured value, and the number of units of work


def bulk(route: Route) -> Result:
    """Gbit/s of one stream, until the server confirms the last byte."""
    block = memoryview(os.urandom(BLOCK))
    sock = route.dial()
    sock.sendall(SINK)
    started = time.perf_counter()
    for _ in range(BULK // BLOCK):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b"."
    took = time.perf_counter() - started
    sock.close()
    return BULK * 8 / took / 1e9, BULK / 1e6


def trip(route: Route) -> Result:
    """Median of a 64-byte round trip, in µs."""
    sock = route.dial()
    sock.sendall(ECHO)
    times = []
    for _ in range(TRIPS):
        started = time.perf_counter()
        sock.sendall(b"x" * 64)
        assert len(sock.recv(64)) == 64
        times.append(time.perf_counter() - started)
    sock.close()
    return statistics.median(times) * 1e6, TRIPS


def connections(route: Route) -> Result:
    """New connections per second, one at a time, each with one round trip."""
    started = time.perf_counter()
    for _ in range(CONNECTIONS):
        sock = route.dial()
        sock.sendall(ECHO + b"x" * 64)
        got = 0
        while got < 64:
            got += len(sock.recv(64))
        sock.close()
    return CONNECTIONS / (time.perf_counter() - started), CONNECTIONS


def crowd(route: Route) -> Result:
    """New connections per second, CROWD at a time, each with one round trip."""
    args = ("connect", *route.address, CROWD, CROWD_SECONDS)
    report = route.load.run(list, *args, seconds=CROWD_SECONDS)
    # the load generator warms up for 0.1 s, which costs CPU too
    return report["count"] / report["seconds"], report["count"] * (1 + 0.1 / CROWD_SECONDS)


class Setup:
    """Two workers in their own processes; their fake agents run in this one."""

    def __init__(self, profile: Path | None) -> None:
        mesh = [workload("a", fresh_ip()), workload("b", fresh_ip())]
        self.nodes = [Node("a", mesh), Node("b", mesh)]
        self.directory = tempfile.TemporaryDirectory(prefix="zt-relay-")
        self.load = Load(build(Path(self.directory.name)))
        self.target = SocketAddress(mesh[1].addresses[0], free_ports(1)[0])
        authority = Authority()
        server = self.load.argv("server", self.target.port)
        self.pids = [os.posix_spawn(server[0], server, os.environ)]
        for node in self.nodes:
            node.target = self.target
            node.certificate = authority.issue(node.me.identity)
            self.pids.append(self._fork(partial(self._work, node, profile)))
        for node in self.nodes:
            node.agent.start()
        for node in self.nodes:
            wait_until(partial(_is_ready, node), "workers to be ready")

    @property
    def workers(self) -> list[int]:
        return self.pids[1:]

    def stop(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
        for node in self.nodes:
            node.agent.stop()
            node.directory.cleanup()
        self.directory.cleanup()

    @property
    def routes(self) -> tuple[Route, Route]:
        """Through the mesh, and plain."""
        target = (self.target.ip, self.target.port)
        return (
            Route(self.meshed, self.nodes[0].outbound, self.load),
            Route(self.plain, target, self.load),
        )

    def meshed(self) -> socket.socket:
        sock = self.nodes[0].dial()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def plain(self) -> socket.socket:
        sock = socket.create_connection((self.target.ip, self.target.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _fork(self, run: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            run()
            os._exit(0)
        return pid

    def _work(self, node: Node, profile: Path | None) -> None:
        node.context.set_client_address = lambda sock, client: None
        if profile is None:
            node.worker.run()
            return
        profiler = cProfile.Profile()
        profiler.runcall(node.worker.run)
        profiler.dump_stats(profile / f"{node.name}.prof")


def _is_ready(node: Node) -> bool:
    return node.me.pod_uid in node.agent.ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--only", choices=["bulk", "trip", "connections", "crowd"])
    options = parser.parse_args()
    with open(
        os.devnull, "w", encoding="utf-8"
    ) as sys.stderr:  # logs are rendered, so their cost counts
        configure_logs("json")
        run(options)


def run(options: argparse.Namespace) -> None:
    measurements = [
        ("bulk, 1 stream", "Gbit/s", bulk, "MB"),
        ("round trip 64 B p50", "µs", trip, "trip"),
        ("new connections", "1/s", connections, "connection"),
        (f"{CROWD} at a time", "1/s", crowd, "connection"),
    ]
    print("hot modules:", "compiled" if compiled.is_loaded() else "sources")
    setup = Setup(options.profile)
    try:
        for name, unit, measure, piece in measurements:
            if options.only not in (None, measure.__name__):
                continue
            before = cpu(setup.workers)
            ours, plain, pieces = rounds(setup, measure, options.rounds)
            report(name, unit, ours, plain)
            spent = (cpu(setup.workers) - before) / pieces
            print(f"{'':22} CPU of both workers {spent * 1e6:.1f} µs per {piece}", flush=True)
        for pid in setup.workers:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            print("worker memory", rss.split(":")[1].strip())
    finally:
        setup.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU of server and workers: {used.ru_utime:.1f} s user, {used.ru_stime:.1f} s system")


def cpu(pids: list[int]) -> float:
    """CPU seconds that these processes have used."""
    return sum(
        int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
        for pid in pids
    )


def rounds(
    setup: Setup, measure: Callable[[Route], Result], count: int
) -> tuple[list[float], list[float], float]:
    """Interleaves both routes, so that other load affects both; also returns the units of work."""
    meshed, bare = setup.routes
    ours, plain = [], []
    for _ in range(count):
        plain.append(measure(bare)[0])
        ours.append(measure(meshed))
    return [value for value, _ in ours], plain, sum(pieces for _, pieces in ours)


def report(name: str, unit: str, ours: list[float], plain: list[float]) -> None:
    mine, theirs = statistics.median(ours), statistics.median(plain)
    print(
        f"{name:22} mesh {mine:9.1f} ({min(ours):.1f}-{max(ours):.1f}) {unit:7}"
        f" plain {theirs:9.1f} {unit:7} ratio {mine / theirs:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
