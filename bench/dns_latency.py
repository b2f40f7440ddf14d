# SPDX-License-Identifier: Apache-2.0
"""DNS of an enrolled pod compared with DNS of a pod outside the mesh. Needs root.

    python bench/dns_latency.py [--seconds 3]

Starts a lab with both clients on one node. They query the cluster DNS of the lab, one query at a
time and 32 at a time, for a name that the mesh answers and for one that only the cluster DNS
knows. They take turns, and the median of three rounds is printed. Everything shares the processors
of the machine, and the DNS of the lab is a Python program: compare ratios, not numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import dns.message  # noqa: E402

SERVER = "10.96.0.10"
ROUNDS = 3
AT_ONCE = 32
NAMES = {
    "from the mesh": "web.plain.svc.cluster.local",
    "forwarded": "elsewhere.plain.svc.cluster.local",
}
Row = dict[str, float]


# In the pods


def measure(name: str, seconds: float) -> Row:
    """Round trips one at a time, then queries with AT_ONCE outstanding."""
    wire = dns.message.make_query(name, "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5.0)
        sock.connect((SERVER, 53))
        times: list[float] = []
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            then = time.perf_counter()
            sock.send(wire)
            _check(sock.recv(4096), wire)
            times.append(time.perf_counter() - then)
    return {
        "p50_us": statistics.median(times) * 1e6,
        "p99_us": sorted(times)[len(times) * 99 // 100] * 1e6,
        "per_s": _flood(wire, seconds),
    }


def _flood(wire: bytes, seconds: float) -> float:
    """A socket for each outstanding query: a repeated query of one socket would count as one."""
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(AT_ONCE)]
    for sock in socks:
        sock.settimeout(5.0)
        sock.connect((SERVER, 53))
        sock.send(wire)
    answered, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        for sock in socks:
            _check(sock.recv(4096), wire)
            sock.send(wire)
        answered += AT_ONCE
    took = time.monotonic() - began
    for sock in socks:
        sock.close()
    return answered / took


def _check(reply: bytes, wire: bytes) -> None:
    if reply[:2] != wire[:2] or reply[3] & 15 or not int.from_bytes(reply[6:8], "big"):
        raise SystemExit(f"not an answer: {reply.hex()}")


# Outside the pods


def objects() -> list[dict[str, Any]]:
    """A client in each of two namespaces, and two names."""
    made: list[dict[str, Any]] = []
    for namespace, labels in (("plain", {}), ("mesh", {"istio.io/dataplane-mode": "ambient"})):
        made += [
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": namespace, "labels": labels},
            },
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "client", "namespace": namespace, "labels": {"app": "client"}},
                "spec": {
                    "nodeSelector": {"kubernetes.io/hostname": "node1"},
                    "containers": [
                        {"name": "app", "image": "python", "command": ["sleep", "infinity"]}
                    ],
                },
            },
        ]
    specs: dict[str, dict[str, Any]] = {
        "web": {"selector": {"app": "client"}, "ports": [{"name": "http", "port": 80}]},
        "elsewhere": {"type": "ExternalName", "externalName": NAMES["from the mesh"]},
    }
    for name, spec in specs.items():
        metadata = {"name": name, "namespace": "plain"}
        made.append({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    return made


def compare(seconds: float) -> None:
    """Start the lab, run both clients in turns, print a table."""
    from ztunnel.lab import Lab  # noqa: PLC0415  not in the pods

    lab = Lab(f"d{os.getpid() % 100000}")
    rows: dict[tuple[str, str], list[Row]] = {}
    try:
        lab.up([])
        lab.apply(*objects())
        for _ in range(ROUNDS):
            for what, name in NAMES.items():
                for namespace in ("plain", "mesh"):
                    argv = [sys.executable, str(Path(__file__).resolve()), "--measure", name]
                    argv += ["--seconds", str(seconds)]
                    done = lab.exec("client", *argv, namespace=namespace, timeout=60 + 4 * seconds)
                    if done.returncode:
                        raise SystemExit(f"{namespace}, {what}: {done.stderr}")
                    found = json.loads(done.stdout.splitlines()[-1])
                    rows.setdefault((what, namespace), []).append(found)
    finally:
        lab.down()
    print(f"{'':24}{'p50 µs':>10}{'p99 µs':>10}{'queries/s':>12}")
    for (what, namespace), found in rows.items():
        middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
        print(
            f"{what + ', ' + namespace:24}{middle['p50_us']:>10.0f}{middle['p99_us']:>10.0f}"
            f"{middle['per_s']:>12,.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.seconds)))
    else:
        compare(options.seconds)


if __name__ == "__main__":
    main()
