# SPDX-License-Identifier: Apache-2.0
"""A log whose reader has stopped, or a full disk, costs log lines and no connection."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.helpers.harness import addresses, client
from tests.lab.helpers.scrape import scrape
from tests.support.waiting import wait_until
from ztunnel.lab import Lab
from ztunnel.lab.components import Component

KINDS = ("agent", "proxy")
START_TIMEOUT_S = 30
DROPPED = "ztunnel_log_lines_dropped_total"


@pytest.fixture(params=["blocked pipe", "full disk"])
def unwritable_logs(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Agent and proxy of node1 run with logs that accept nothing, then with normal ones."""
    components = [lab.component("node1", kind) for kind in KINDS]
    holders = []
    for component in components:
        component.stop()
        _saved(component.log).unlink(missing_ok=True)
        component.log.rename(_saved(component.log))
        if request.param == "full disk":
            component.log.symlink_to("/dev/full")
        else:
            os.mkfifo(component.log)
            holders.append(_full_pipe(component.log))
    try:
        _start(components)
        yield lab
    finally:
        for component in components:
            component.stop(kill=True)
            component.log.unlink()
            _saved(component.log).rename(component.log)
        for holder in holders:
            os.close(holder)
        _start(components)


def _start(components: list[Component]) -> None:
    """Start all, and wait until they are ready: the agent is not without a worker."""
    for component in components:
        component.start()
    for component in components:
        component.wait_ready(time.monotonic() + START_TIMEOUT_S)


def _saved(log: Path) -> Path:
    return log.with_suffix(".saved")


def _full_pipe(path: Path) -> int:
    """Fill a FIFO that is never read; returns the descriptor that keeps it open."""
    holder = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    for size in (4096, 1):
        try:
            while True:
                os.write(holder, b"x" * size)
        except BlockingIOError:
            continue
    return holder


def test_connections_succeed_while_no_log_can_be_written(
    unwritable_logs: Lab, request: pytest.FixtureRequest
) -> None:
    lab = unwritable_logs
    target = addresses(lab, "server")[4]
    wait_until(lambda: scrape(lab, "node1").total("ztunnel_ready") == 1, "readiness", timeout_s=30)
    for _ in range(20):
        assert client(lab, "client", "echo", target, 7000, "x") == {"said": "x"}
    if "full disk" in request.node.name:
        assert scrape(lab, "node1").total(DROPPED, reason="write_failed") > 20
