# SPDX-License-Identifier: Apache-2.0
"""Sessions with workers over real sockets: access, slow workers, invalid input."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import msgspec
import pytest
import structlog

from tests.support.agent_fakes import Component, FakeWorker, handlers_of
from tests.support.descriptors import no_descriptors
from tests.support.waiting import wait_until_async
from ztunnel.agent.workers import server as server_module
from ztunnel.agent.workers.handlers import MessageHandlers, SessionObserver
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.agent.workers.server import AgentLinkServer
from ztunnel.agent.workers.session import Peer, Session
from ztunnel.ipc.channel import MAX_MESSAGE_BYTES
from ztunnel.ipc.introspection import View
from ztunnel.ipc.messages import (
    HeldListeners,
    Hello,
    IntrospectionReply,
    ListenerKind,
    MeshDelta,
    PodReady,
    PodRemoved,
    SocketRequest,
)


class Recorder(SessionObserver):
    """Records events of sessions, and the messages that its handlers get."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def register(self, handlers: MessageHandlers) -> None:
        handlers.register(Hello, self._hello)
        handlers.register(PodReady, self._ready)
        handlers.register(SocketRequest, self._need)

    def _hello(self, session: Session, message: Hello, fds: list[int]) -> None:
        self.events.append(("adopt", message.worker, len(fds)))

    def _ready(self, session: Session, message: PodReady, fds: list[int]) -> None:
        self.events.append(("ready", message.pod_uid))

    def _need(self, session: Session, message: SocketRequest, fds: list[int]) -> None:
        self.events.append(("need", message.count))

    def joined(self, session: Session) -> None:
        self.events.append(("joined", session.worker))

    def left(self, session: Session) -> None:
        self.events.append(("left", session.worker))


class Hub:
    """A server with the sessions that it accepts."""

    def __init__(self, path: Path, *components: SessionObserver) -> None:
        self.registry = SessionTable()
        handlers = handlers_of(*cast("tuple[Component, ...]", components))
        self._server = AgentLinkServer(path, os.getuid(), self.registry, handlers, components)
        self.start, self.close = self._server.start, self._server.close
        self.broadcast, self.query = self.registry.broadcast, self.registry.query

    @property
    def sessions(self) -> list[Session]:
        return self.registry.sessions


@asynccontextmanager
async def hub(tmp_path: Path) -> AsyncIterator[tuple[Hub, Recorder, Path]]:
    recorder, path = Recorder(), tmp_path / "agent.sock"
    made = Hub(path, recorder)
    made.start()
    try:
        yield made, recorder, path
    finally:
        made.close()


def test_server_rejects_table_with_missing_handler(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PodReady, SameNodeAllowed"):
        AgentLinkServer(tmp_path / "agent.sock", 0, SessionTable(), MessageHandlers(), ())


def test_message_has_one_handler() -> None:
    handlers = MessageHandlers()
    Recorder().register(handlers)
    with pytest.raises(ValueError, match="Hello has two handlers"):
        Recorder().register(handlers)


async def test_worker_joins_reports_ready_and_requests_sockets(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, recorder, path):
        worker = FakeWorker(path, worker=3).greet()
        await wait_until_async(lambda: len(workers.sessions) == 1)
        worker.channel.send(PodReady("p"))
        worker.channel.send(SocketRequest("p", 4, 16))
        await wait_until_async(lambda: len(recorder.events) == 4)
        assert recorder.events[1:] == [("joined", 3), ("ready", "p"), ("need", 16)]
        worker.close()
        await wait_until_async(lambda: recorder.events[-1] == ("left", 3))
        assert workers.sessions == []


async def test_socket_is_accessible_to_proxy_user_only(tmp_path: Path) -> None:
    async with hub(tmp_path) as (_, _, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_uid == os.getuid()


async def test_other_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_peer", lambda _: Peer(1, 4242))

    async with hub(tmp_path) as (workers, recorder, path):
        worker = FakeWorker(path)
        await wait_until_async(lambda: worker.ended)
        assert recorder.events == []
        assert workers.sessions == []


def test_peer_credentials_come_from_the_kernel() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        assert server_module._peer(one) == Peer(os.getpid(), os.getuid())


async def test_snapshot_is_sent_after_all_hellos(tmp_path: Path) -> None:
    async with hub(tmp_path) as (_, recorder, path):
        worker = FakeWorker(path)
        worker.greet((worker.hello(), []), (worker.hello(), []), (worker.hello(), []))
        await wait_until_async(lambda: ("joined", 0) in recorder.events)
        assert [event[0] for event in recorder.events] == ["adopt"] * 3 + ["joined"]
        worker.close()


async def test_broadcast_skips_sessions_before_hello(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, path):
        silent, greeted = FakeWorker(path), FakeWorker(path).greet()
        await wait_until_async(lambda: len(workers.sessions) == 1)
        workers.broadcast(PodRemoved("p"))
        await wait_until_async(lambda: bool(greeted.messages))
        assert silent.messages == []
        silent.close()
        greeted.close()


async def test_hello_with_wrong_number_of_descriptors_closes_session(tmp_path: Path) -> None:
    async with hub(tmp_path) as (_, recorder, path):
        worker = FakeWorker(path)
        before = len(os.listdir("/proc/self/fd"))
        held = HeldListeners("p", 7, (ListenerKind.HBONE4, ListenerKind.HBONE6))
        worker.greet((worker.hello(held), [worker.sock.fileno()]))
        await wait_until_async(lambda: worker.ended)
        assert recorder.events == [("left", 0)]
        assert len(os.listdir("/proc/self/fd")) <= before


async def test_invalid_packet_closes_that_session_only(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, path):
        rude, good = FakeWorker(path), FakeWorker(path).greet()
        rude.sock.send(b"\xff junk")
        await wait_until_async(lambda: rude.ended)
        await wait_until_async(lambda: len(workers.sessions) == 1)
        good.close()


async def test_slow_worker_is_disconnected_without_affecting_others(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, recorder, path):
        slow, quick = FakeWorker(path, worker=1).greet(), FakeWorker(path, worker=2).greet()
        await wait_until_async(lambda: len(workers.sessions) == 2)
        slow.stall()
        news = MeshDelta(revision=1, removed_workloads=("x" * 200_000,))
        for _ in range(200):
            workers.broadcast(news)
            await asyncio.sleep(0)
        await wait_until_async(lambda: ("left", 1) in recorder.events)
        await wait_until_async(lambda: len(quick.messages) == 200)
        assert [session.worker for session in workers.sessions] == [2]
        slow.close()
        quick.close()


async def test_queued_descriptors_are_copies_and_do_not_leak(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, path):
        worker = FakeWorker(path).greet()
        await wait_until_async(lambda: len(workers.sessions) == 1)
        session = workers.sessions[0]
        worker.stall()
        while session.queued_bytes == 0:
            session.send(MeshDelta(revision=1, removed_workloads=("x" * 200_000,)))
        before = len(os.listdir("/proc/self/fd"))
        read, write = os.pipe()
        session.send(PodRemoved("p"), [read])
        os.close(read)
        os.close(write)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        worker.close()
        await wait_until_async(lambda: not workers.sessions)
        assert len(os.listdir("/proc/self/fd")) <= before


async def test_queries_return_replies_and_name_workers_without_reply(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, path):
        talker, mute = FakeWorker(path, worker=1).greet(), FakeWorker(path, worker=2).greet()
        talker.answers = lambda number, what: IntrospectionReply(
            number, msgspec.Raw(msgspec.msgpack.encode({what: 7}))
        )
        await wait_until_async(lambda: len(workers.sessions) == 2)
        answers = await workers.query(View.STATS, timeout_s=0.2)
        bodies = {answer.worker: answer.body for answer in answers}
        assert bodies == {1: {"stats": 7}, 2: None}
        talker.close()
        mute.close()


async def test_query_ends_when_session_closes(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, path):
        worker = FakeWorker(path).greet()
        await wait_until_async(lambda: len(workers.sessions) == 1)
        asking = asyncio.create_task(workers.query(View.STATS, timeout_s=60))
        await wait_until_async(lambda: bool(worker.messages))
        worker.close()
        async with asyncio.timeout(5):
            assert [answer.body for answer in await asking] == [None]


async def test_stopping_agent_closes_sessions(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, path):
        worker = FakeWorker(path).greet()
        await wait_until_async(lambda: len(workers.sessions) == 1)
        workers.close()
        await wait_until_async(lambda: worker.ended)
        assert not path.exists()


async def test_stale_socket_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "agent.sock"))
    async with hub(tmp_path) as (workers, _, path):
        worker = FakeWorker(path).greet()
        await wait_until_async(lambda: len(workers.sessions) == 1)
        worker.close()


async def test_accept_pauses_without_descriptors_and_resumes(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, path):
        worker = FakeWorker(path).greet()  # in the backlog
        with structlog.testing.capture_logs() as lines, no_descriptors():
            await asyncio.sleep(2 * server_module.ACCEPT_PAUSE_S + 0.2)
        paused = [line for line in lines if line["event"] == "accept paused"]
        assert 2 <= len(paused) <= 4  # without a pause: thousands
        await wait_until_async(lambda: len(workers.sessions) == 1)
        worker.close()


async def test_queue_without_descriptors_for_copies_closes_session(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, path):
        worker = FakeWorker(path).greet()
        await wait_until_async(lambda: len(workers.sessions) == 1)
        session = workers.sessions[0]
        worker.stall()
        while session.queued_bytes == 0:
            session.send(MeshDelta(revision=1, removed_workloads=("x" * 200_000,)))
        with no_descriptors():
            session.send(PodRemoved("p"), [worker.sock.fileno()])
        assert workers.sessions == []
        worker.close()


async def test_message_larger_than_a_packet_closes_only_its_session(tmp_path: Path) -> None:
    async with hub(tmp_path) as (workers, _, path):
        first, second = FakeWorker(path, worker=1).greet(), FakeWorker(path, worker=2).greet()
        await wait_until_async(lambda: len(workers.sessions) == 2)
        session, other = workers.sessions
        session.send(PodRemoved("p" * (MAX_MESSAGE_BYTES + 1)))
        assert workers.sessions == [other]
        first.close()
        second.close()
