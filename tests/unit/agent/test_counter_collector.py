# SPDX-License-Identifier: Apache-2.0
"""Counts over real sockets: a broken link counts nothing twice, a death closes what was open."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.unit.agent.fakes import FakeWorker, until
from tests.unit.agent.test_session import Recorder
from tests.unit.telemetry.builders import between
from ztunnel.agent.workers.counter_collector import CounterCollector
from ztunnel.agent.workers.session import Workers
from ztunnel.ipc.messages import Count, CounterAck, CounterMemory, CounterReport, Draining
from ztunnel.telemetry.node_counters import Ledger, Totals

PAIR = between("a", "db")
OPENED, CLOSED = "istio_tcp_connections_opened", "istio_tcp_connections_closed"

# A worker process: says what it counted, and lives until its input ends.
WORKER = """
import socket, sys
from ztunnel.ipc.channel import Channel
from ztunnel.ipc.messages import Count, CounterReport, Hello, ToWorker
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
channel = Channel(sock, ToWorker)
channel.send(Hello(version="1", pid=1, worker=0))
rows = (Count(tuple(sys.argv[2].split("|")), opened=3, closed=1),)
channel.send(CounterReport(instance=5, number=1, rows=rows))
channel.receive()
print("told", flush=True)
if len(sys.argv) > 3:
    sock.close()
sys.stdin.read()
"""


class Book:
    def __init__(self) -> None:
        self.totals = Totals(100)
        self.ledger = Ledger(self.totals)
        self.account = CounterCollector(self.ledger)

    def value(self, metric: str) -> int:
        return sum(value for _, value in self.totals.snapshot()[metric])


@asynccontextmanager
async def hub(tmp_path: Path) -> AsyncIterator[tuple[Workers, Recorder, Book, Path]]:
    recorder, book, path = Recorder(), Book(), tmp_path / "agent.sock"
    made = Workers(path, os.getuid(), recorder, book.account)
    made.start()
    try:
        yield made, recorder, book, path
    finally:
        made.close()
        book.account.close()


def told(number: int, instance: int = 5, **counts: int) -> CounterReport:
    return CounterReport(instance=instance, number=number, rows=(Count(PAIR, **counts),))


async def test_what_is_told_is_taken_and_answered(tmp_path: Path) -> None:
    async with hub(tmp_path) as (_, _, book, path):
        worker = FakeWorker(path).greet()
        worker.channel.send(told(1, opened=2))
        worker.channel.send(told(1, opened=2))
        worker.channel.send(told(2, opened=1))
        await until(lambda: len(worker.of(CounterAck)) == 3)
        assert book.value(OPENED) == 3
        worker.close()


# Counts, writes down what it has not told, and dies by force.
KILLED = """
import os, signal, socket, sys
from ztunnel.ipc.channel import Channel
from ztunnel.ipc.messages import Count, CounterReport, Hello, CounterMemory, ToWorker
from ztunnel.telemetry.counter_memory import Writer
labels = tuple(sys.argv[2].split("|"))
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
channel = Channel(sock, ToWorker)
channel.send(Hello(version="1", pid=1, worker=0))
remains = Writer()
channel.send(CounterMemory(5), [remains.fd])
remains.put(Count(labels, opened=3))
channel.send(CounterReport(instance=5, number=1, rows=(Count(labels, opened=3),)))
if sys.argv[3] == "later":
    remains.begin(1)
    remains.put(Count(labels, opened=1))
    remains.put(Count(labels, opened=2, closed=1, sent=700))
channel.receive()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("when", "opened", "sent"), [("at once", 3, 0), ("later", 5, 700)])
async def test_a_killed_worker_leaves_what_it_had_not_told(
    tmp_path: Path, when: str, opened: int, sent: int
) -> None:
    async with hub(tmp_path) as (_, _, book, path):
        argv = [sys.executable, "-c", KILLED, str(path), "|".join(PAIR), when]
        process = await asyncio.to_thread(subprocess.run, argv, timeout=30, check=False)
        assert process.returncode == -9
        await until(lambda: not book.ledger.instances)
        assert book.value(OPENED) == book.value(CLOSED) == opened
        assert book.value("istio_tcp_received_bytes") == sent


async def test_remains_that_are_none_end_the_session(tmp_path: Path) -> None:
    async with hub(tmp_path) as (_, _, book, path):
        worker = FakeWorker(path).greet()
        with (tmp_path / "file").open("wb") as file:
            worker.channel.send(CounterMemory(5), [file.fileno()])
        await until(lambda: worker.ended)
        assert not book.totals.snapshot()[OPENED]


async def test_a_broken_link_is_no_death(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, book, path):
        worker = FakeWorker(path).greet()
        worker.channel.send(told(1, opened=2))
        await until(lambda: book.value(OPENED) == 2)
        worker.close()
        await until(lambda: not workers.sessions)
        again = FakeWorker(path).greet((worker.hello(), []))
        again.channel.send(told(1, opened=2))
        again.channel.send(told(2, closed=1))
        await until(lambda: book.value(CLOSED) == 1)
        assert book.value(OPENED) == 2
        again.close()


async def test_one_session_speaks_for_one_worker(tmp_path: Path) -> None:
    async with hub(tmp_path) as (_, _, book, path):
        worker = FakeWorker(path).greet()
        worker.channel.send(told(1, opened=1))
        worker.channel.send(told(1, instance=6, opened=1))
        await until(lambda: worker.ended)
        assert book.value(OPENED) == 1


@pytest.mark.parametrize("more", [(), ("hangs up",)])
async def test_death_closes_what_was_open(tmp_path: Path, more: tuple[str, ...]) -> None:
    async with hub(tmp_path) as (workers, _, book, path):
        argv = [sys.executable, "-c", WORKER, str(path), "|".join(PAIR), *more]
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"told\n"
        if more:  # it hung up, and lives
            await until(lambda: not workers.sessions)
        assert (book.value(OPENED), book.value(CLOSED)) == (3, 1)
        process.kill()
        await until(lambda: book.value(CLOSED) == 3, "the dead worker's connections")
        await process.wait()


async def test_a_draining_worker_has_left_but_is_heard(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, recorder, book, path):
        worker = FakeWorker(path).greet()
        await until(lambda: len(workers.sessions) == 1)
        worker.channel.send(Draining())
        await until(lambda: not workers.sessions)
        assert recorder.events[-1] == ("left", 0)
        worker.channel.send(told(1, opened=1, closed=1))
        await until(lambda: book.value(CLOSED) == 1)
        worker.close()
        await until(lambda: book.account._of == {})
        assert recorder.events.count(("left", 0)) == 1


async def test_who_drains_before_it_joined_never_joins(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, recorder, _, path):
        worker = FakeWorker(path)
        worker.channel.send(worker.hello())
        worker.channel.send(Draining())
        await until(lambda: ("left", 0) in recorder.events)
        assert ("joined", 0) not in recorder.events
        assert workers.sessions == []
        worker.close()
