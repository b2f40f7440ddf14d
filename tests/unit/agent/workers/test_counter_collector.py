# SPDX-License-Identifier: Apache-2.0
"""Counter reports over real sockets: each counts once, and a worker's exit closes what was open."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.agent_fakes import FakeWorker
from tests.support.waiting import wait_until_async
from tests.unit.agent.workers.test_session import Hub, Recorder
from tests.unit.telemetry.builders import between
from ztunnel.agent.workers.counter_collector import CounterCollector
from ztunnel.ipc.messages import CounterAck, CounterReport, Draining, SeriesCounts
from ztunnel.telemetry.node_counters import NodeCounters, TrafficTotals

PAIR = between("a", "db")
OPENED, CLOSED = "istio_tcp_connections_opened", "istio_tcp_connections_closed"

# A worker process: reports, and runs until its input ends.
WORKER = """
import socket, sys
from ztunnel.ipc.channel import Channel
from ztunnel.ipc.messages import CounterReport, Hello, SeriesCounts, ToWorker
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
channel = Channel(sock, ToWorker)
channel.send(Hello(version="1", pid=1, worker=0))
series = (SeriesCounts(tuple(sys.argv[2].split("|")), opened=3, closed=1),)
channel.send(CounterReport(instance=5, seq=1, series=series))
channel.receive()
print("reported", flush=True)
if len(sys.argv) > 3:
    sock.close()
sys.stdin.read()
"""


class Node:
    def __init__(self) -> None:
        self.totals = TrafficTotals(100)
        self.counters = NodeCounters(self.totals)
        self.collector = CounterCollector(self.counters)

    def value(self, metric: str) -> int:
        return sum(value for _, value in self.totals.snapshot()[metric])


@asynccontextmanager
async def hub(tmp_path: Path) -> AsyncIterator[tuple[Hub, Recorder, Node, Path]]:
    recorder, node, path = Recorder(), Node(), tmp_path / "agent.sock"
    made = Hub(path, recorder, node.collector)
    made.start()
    try:
        yield made, recorder, node, path
    finally:
        made.close()
        node.collector.close()


def report(seq: int, instance: int = 5, **counts: int) -> CounterReport:
    return CounterReport(instance=instance, seq=seq, series=(SeriesCounts(PAIR, **counts),))


async def test_reports_are_counted_once_and_acknowledged(tmp_path: Path) -> None:
    async with hub(tmp_path) as (_, _, node, path):
        worker = FakeWorker(path).greet()
        worker.channel.send(report(1, opened=2))
        worker.channel.send(report(1, opened=2))
        worker.channel.send(report(2, opened=1))
        await wait_until_async(lambda: len(worker.of(CounterAck)) == 3)
        assert node.value(OPENED) == 3
        worker.close()


# Sends two reports and is killed: the agent may not have read them when the process exits.
KILLED = """
import os, signal, socket, sys
from ztunnel.ipc.channel import Channel
from ztunnel.ipc.messages import CounterReport, Hello, SeriesCounts, ToWorker
labels = tuple(sys.argv[2].split("|"))
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
channel = Channel(sock, ToWorker)
channel.send(Hello(version="1", pid=1, worker=0))
for seq in (1, 2):
    series = (SeriesCounts(labels, opened=3, closed=2, sent=100),)
    channel.send(CounterReport(instance=5, seq=seq, series=series))
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_all_reports_that_a_killed_worker_sent_are_counted(tmp_path: Path) -> None:
    async with hub(tmp_path) as (_, _, node, path):
        argv = [sys.executable, "-c", KILLED, str(path), "|".join(PAIR)]
        process = await asyncio.to_thread(subprocess.run, argv, timeout=30, check=False)
        assert process.returncode == -9
        await wait_until_async(lambda: node.value(CLOSED) == 6)
        assert not node.counters.instances
        assert node.value(OPENED) == 6
        assert node.value("istio_tcp_received_bytes") == 200


async def test_reconnecting_worker_keeps_its_open_connections(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, node, path):
        worker = FakeWorker(path).greet()
        worker.channel.send(report(1, opened=2))
        await wait_until_async(lambda: node.value(OPENED) == 2)
        worker.close()
        await wait_until_async(lambda: not workers.sessions)
        again = FakeWorker(path).greet((worker.hello(), []))
        again.channel.send(report(1, opened=2))
        again.channel.send(report(2, closed=1))
        await wait_until_async(lambda: node.value(CLOSED) == 1)
        assert node.value(OPENED) == 2
        again.close()


async def test_session_that_reports_for_two_workers_is_closed(tmp_path: Path) -> None:
    async with hub(tmp_path) as (_, _, node, path):
        worker = FakeWorker(path).greet()
        worker.channel.send(report(1, opened=1))
        worker.channel.send(report(1, instance=6, opened=1))
        await wait_until_async(lambda: worker.ended)
        assert node.value(OPENED) == 1


@pytest.mark.parametrize("more", [(), ("disconnect",)])
async def test_exited_worker_has_its_open_connections_closed(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    async with hub(tmp_path) as (workers, _, node, path):
        argv = [sys.executable, "-c", WORKER, str(path), "|".join(PAIR), *more]
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"reported\n"
        if more:  # it disconnected and still runs
            await wait_until_async(lambda: not workers.sessions)
        assert (node.value(OPENED), node.value(CLOSED)) == (3, 1)
        process.kill()
        await wait_until_async(
            lambda: node.value(CLOSED) == 3, "the connections of the exited worker"
        )
        await process.wait()


async def test_reports_of_draining_worker_are_counted(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, recorder, node, path):
        worker = FakeWorker(path).greet()
        await wait_until_async(lambda: len(workers.sessions) == 1)
        worker.channel.send(Draining())
        await wait_until_async(lambda: not workers.sessions)
        assert recorder.events[-1] == ("left", 0)
        worker.channel.send(report(1, opened=1, closed=1))
        await wait_until_async(lambda: node.value(CLOSED) == 1)
        worker.close()
        await wait_until_async(lambda: node.collector._instances == {})
        assert recorder.events.count(("left", 0)) == 1


async def test_worker_that_drains_before_it_joined_never_joins(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, recorder, _, path):
        worker = FakeWorker(path)
        worker.channel.send(worker.hello())
        worker.channel.send(Draining())
        await wait_until_async(lambda: ("left", 0) in recorder.events)
        assert ("joined", 0) not in recorder.events
        assert workers.sessions == []
        worker.close()
