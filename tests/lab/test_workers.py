# SPDX-License-Identifier: Apache-2.0
"""Several workers share the pods of a node evenly, and survive each other."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.helpers.harness import APPS, addresses, client
from tests.support.waiting import wait_until
from ztunnel.lab import Lab, admin_get

HELD = 12


@pytest.fixture
def two_workers(lab: Lab) -> Iterator[Lab]:
    """The proxy of node1 has two workers during the test, then one."""
    single = lab.component("node1", "proxy")
    single.stop()
    double = dataclasses.replace(single, options=("--workers", "2"))
    double.start()
    try:
        wait_until(lambda: _serving(lab) == 2, "both workers to serve", timeout_s=30)
        yield lab
    finally:
        double.stop()
        lab.start("node1", "proxy")


def _workers(lab: Lab) -> list[dict[str, Any]]:
    _, status = admin_get(lab.names, "node1", "/v1/status")
    found: list[dict[str, Any]] = (status or {}).get("workers", [])
    return found


def _serving(lab: Lab) -> int:
    """The number of workers that serve every pod of the node."""
    _, answer = admin_get(lab.names, "node1", "/v1/pods")
    rows = [row for row in (answer or {}).get("pods", []) if row["state"] == "captured"]
    return min((len(row["served_by"]) for row in rows), default=0)


def _hold(lab: Lab) -> subprocess.Popen[bytes]:
    target = addresses(lab, "server")[4]
    held = lab.popen("client", sys.executable, str(APPS / "client.py"), "hold", target, "7000")
    assert held.stdout is not None
    assert held.stdout.readline() == b"connected\n"
    return held


def _says(held: subprocess.Popen[bytes]) -> bytes:
    assert held.stdin is not None
    assert held.stdout is not None
    held.stdin.write(b"0123456789\n")
    held.stdin.flush()
    return held.stdout.readline()


def _end(held: subprocess.Popen[bytes]) -> None:
    held.kill()
    held.communicate()


def test_workers_share_connections_and_survive_each_other(two_workers: Lab) -> None:
    lab = two_workers
    held = [_hold(lab) for _ in range(HELD)]
    try:
        wait_until(lambda: sum(_spread(lab).values()) == HELD, "all connections to be listed")
        spread = _spread(lab)
        assert min(spread[0], spread[1]) >= HELD // 4, spread
        victim = next(worker["pid"] for worker in _workers(lab) if worker["worker"] == 0)
        os.kill(victim, signal.SIGKILL)
        assert client(lab, "client", "echo", addresses(lab, "server")[4], 7000, "hi") == {
            "said": "hi"
        }
        assert sum(_says(one) == b"0123456789\n" for one in held) == spread[1]
        wait_until(lambda: _serving(lab) == 2, "the successor")
        assert victim not in {worker["pid"] for worker in _workers(lab)}
    finally:
        for one in held:
            _end(one)


def _spread(lab: Lab) -> Counter[int]:
    _, answer = admin_get(lab.names, "node1", "/v1/connections")
    rows = (answer or {}).get("connections", [])
    return Counter(row["worker"] for row in rows if row["direction"] == "outbound")
