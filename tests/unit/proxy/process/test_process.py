# SPDX-License-Identifier: Apache-2.0
"""The proxy process: no privileges, exits on SIGTERM, replaces workers that exit or hang."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.unit.proxy.harness import DEADLINE

Proxy = subprocess.Popen[bytes]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path


def start(run_dir: Path, *options: str) -> Proxy:
    code = "from ztunnel.main import cli; cli()"
    words = ["proxy", "--node", "n", "--run-dir", str(run_dir), "--log-format", "json", *options]
    return subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)


@pytest.fixture
def proxy(run_dir: Path) -> Iterator[Proxy]:
    process = start(run_dir)
    yield process
    process.kill()
    process.wait()


def status(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_all_privileges_are_dropped(proxy: Proxy) -> None:
    wait_until(lambda: status(proxy.pid)["NoNewPrivs"].strip() == "1", "dropped privileges")
    found = status(proxy.pid)
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    if os.geteuid() == 0:
        assert found["CapBnd"] == "0" * 16
        assert found["Uid"].split() == ["15008"] * 4
        assert found["Gid"].split() == ["15008"] * 4
        assert found["Groups"].strip() == ""


def test_sigterm_exits_with_success(proxy: Proxy) -> None:
    wait_until(lambda: catches_sigterm(proxy.pid), "start")
    proxy.terminate()
    assert proxy.wait(DEADLINE) == 0


def catches_sigterm(pid: int) -> bool:
    return bool(int(status(pid)["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)


def test_killed_worker_is_replaced_and_sigterm_stops_all(run_dir: Path) -> None:
    supervisor = start(run_dir, "--workers", "2")
    try:
        wait_until(lambda: len(children(supervisor.pid)) == 2, "two workers")
        first, second = children(supervisor.pid)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: first not in children(supervisor.pid), "the end of one")
        wait_until(lambda: len(children(supervisor.pid)) == 2, "its successor")
        assert second in children(supervisor.pid)
        wait_until(lambda: all(map(catches_sigterm, children(supervisor.pid))), "start")
        supervisor.terminate()
        assert supervisor.wait(DEADLINE) == 0
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.fixture
def port() -> int:
    """A free port outside the ephemeral range."""
    for number in range(20_000 + os.getpid() % 10_000, 32_000):
        with contextlib.suppress(OSError), socket.create_server(("", number)):
            return number
    raise AssertionError("no free port")


def probe(port: int, path: str) -> tuple[int, str]:
    """Status and body; 0 while the connection fails."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_hung_worker_fails_liveness_and_is_replaced(run_dir: Path, port: int, workers: int) -> None:
    supervisor = start(
        run_dir, f"--workers={workers}", f"--health-port={port}", "--worker-watchdog-timeout=4"
    )
    try:
        wait_until(lambda: len(children(supervisor.pid)) == workers, "workers")
        wait_until(lambda: all(map(catches_sigterm, children(supervisor.pid))), "start")
        wait_until(lambda: probe(port, "/healthz/live") == (200, "ok\n"), "liveness")
        hung = children(supervisor.pid)[-1]
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: probe(port, "/healthz/live")[0] == 503, "the hang to be noticed")
        wait_until(lambda: hung not in children(supervisor.pid), "its end")
        wait_until(lambda: len(children(supervisor.pid)) == workers, "its successor")
        wait_until(lambda: probe(port, "/healthz/live")[0] == 200, "liveness again")
    finally:
        supervisor.kill()
        supervisor.wait()


def test_proxy_is_not_ready_before_first_mesh_snapshot(run_dir: Path, port: int) -> None:
    proxy = start(run_dir, f"--health-port={port}")
    try:
        wait_until(lambda: probe(port, "/healthz/live")[0] == 200, "liveness")
        assert probe(port, "/healthz/ready") == (503, "worker 0 is starting\n")
        assert probe(port, "/other")[0] == 404
    finally:
        proxy.kill()
        proxy.wait()


def test_workers_exit_with_their_supervisor(run_dir: Path) -> None:
    supervisor = start(run_dir)
    wait_until(lambda: len(children(supervisor.pid)) == 1, "a worker")
    (worker,) = children(supervisor.pid)
    wait_until(lambda: catches_sigterm(worker), "start")
    watched = os.pidfd_open(worker)
    supervisor.kill()
    supervisor.wait()
    ready, _, _ = select.select([watched], [], [], DEADLINE)
    os.close(watched)
    assert ready


def test_proxy_does_not_import_libraries_of_the_agent() -> None:
    code = (
        "import sys, ztunnel.proxy.cli\n"
        "print([name for name in ('aiohttp', 'kubernetes', 'bcc', 'pyroute2',"
        " 'yaml', 'prometheus_client', 'opentelemetry') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout.strip() == b"[]"
