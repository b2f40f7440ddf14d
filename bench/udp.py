# SPDX-License-Identifier: Apache-2.0
"""UDP through the mesh compared with plain UDP: round trips, and datagrams per second. Needs root.

    python bench/udp.py [--seconds 5] [--size 1200]

Starts a lab with a client on one node and a server on the other, once in the mesh and once outside
it. They take turns, and the median of three rounds is printed. Both nodes, client and server share
the processors of one machine: compare ratios, not numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PORT = 7300
ROUNDS = 3
REPORT = b"report"  # requests the datagrams received since the last request
Row = dict[str, float]


# In the pods


def serve() -> None:
    """Echo datagrams that begin with `e`, count the others."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind(("0.0.0.0", PORT))
    print("serving", flush=True)
    came, first, last = 0, 0.0, 0.0
    while True:
        data, source = sock.recvfrom(65536)
        if data == REPORT:
            sock.sendto(json.dumps([came, last - first]).encode(), source)
            came = 0
        elif data[:1] == b"e":
            sock.sendto(data, source)
        else:
            last = time.monotonic()
            first = first if came else last
            came += 1


def measure(host: str, seconds: float, size: int) -> Row:
    """Round trips of 64 bytes one at a time, then datagrams as fast as possible."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, PORT))
    times = trips(sock, seconds)
    sent, payload = 0, b"c" * size
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        for _ in range(64):
            sock.send(payload)
        sent += 64
        if not sent % 1024:
            time.sleep(0)  # yield the processor
    took = time.monotonic() - began
    came, span = report(sock)
    return {
        "p50_us": statistics.median(times) * 1e6,
        "p99_us": sorted(times)[len(times) * 99 // 100] * 1e6,
        "sent_per_s": sent / took,
        "came_per_s": came / span if span else 0.0,
        "lost": 1 - came / sent,
    }


def trips(sock: socket.socket, seconds: float) -> list[float]:
    times: list[float] = []
    ping = b"e" * 64
    sock.settimeout(2.0)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        then = time.perf_counter()
        sock.send(ping)
        sock.recv(64)
        times.append(time.perf_counter() - then)
    return times


def report(sock: socket.socket) -> tuple[int, float]:
    """The count of the server; repeated, since the request may be lost in the flood."""
    total, span, deadline = 0, 0.0, time.monotonic() + 30
    while time.monotonic() < deadline:
        sock.send(REPORT)
        if select.select([sock], [], [], 1.0)[0]:
            came, took = json.loads(sock.recv(65536))
            if not came and total:
                return total, span
            total, span = total + came, max(span, took)
    return total, span


# Outside the pods


def pod(name: str, node: str, namespace: str, *argv: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), *argv] if argv else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [
                {"name": "app", "image": "python", "command": command or ["sleep", "infinity"]}
            ],
        },
    }


def compare(seconds: float, size: int) -> None:
    """Start the lab, run both clients in turns, print a table."""
    from ztunnel.lab import Lab  # noqa: PLC0415  not in the pods

    ambient = {"istio.io/dataplane-mode": "ambient"}
    lab = Lab(f"u{os.getpid() % 100000}")
    rows: dict[str, list[Row]] = {"plain": [], "mesh": []}
    try:
        lab.up([])
        for namespace in rows:
            labels = ambient if namespace == "mesh" else {}
            lab.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": namespace, "labels": labels},
                },
                pod("server", "node2", namespace, "--serve"),
                pod("client", "node1", namespace),
            )
        for _ in range(ROUNDS):
            for namespace, found in rows.items():
                target = lab.pod("server", namespace)["status"]["podIP"]
                argv = [sys.executable, str(Path(__file__).resolve()), "--measure", target]
                argv += ["--seconds", str(seconds), "--size", str(size)]
                done = lab.exec("client", *argv, namespace=namespace, timeout=60 + 4 * seconds)
                if done.returncode:
                    raise SystemExit(f"{namespace}: {done.stderr}")
                found.append(json.loads(done.stdout.splitlines()[-1]))
    finally:
        lab.down()
    print(f"{'':8}{'p50 µs':>10}{'p99 µs':>10}{'sent/s':>12}{'came/s':>12}{'lost':>8}")
    for namespace, found in rows.items():
        middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
        print(
            f"{namespace:8}{middle['p50_us']:>10.0f}{middle['p99_us']:>10.0f}"
            f"{middle['sent_per_s']:>12,.0f}{middle['came_per_s']:>12,.0f}{middle['lost']:>8.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--size", type=int, default=1200, help="bytes of a counted datagram")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", metavar="HOST", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    elif options.measure:
        print(json.dumps(measure(options.measure, options.seconds, options.size)))
    else:
        compare(options.seconds, options.size)


if __name__ == "__main__":
    main()
