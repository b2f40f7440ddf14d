# SPDX-License-Identifier: Apache-2.0
"""The worker's session with the agent: how it reconnects."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import cast

import pytest

from tests.support.descriptors import no_descriptors
from ztunnel.ipc.channel import Channel
from ztunnel.ipc.messages import CounterAck, PodAdded, ToAgent
from ztunnel.proxy.agent_link import session as session_module
from ztunnel.proxy.agent_link.session import MIN_RECONNECT_DELAY_S, Session
from ztunnel.proxy.io.event_loop import EventLoop


class FakeLoop:
    """Records timers instead of running them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.delays: list[float] = []

    def call_later(self, delay: float, _: Callable[[], None]) -> None:
        self.delays.append(delay)

    def register(self, *_: object) -> None: ...

    def modify(self, *_: object) -> None: ...

    def close(self, sock: socket.socket) -> None:
        sock.close()


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def session(loop: FakeLoop) -> Session:
    return Session(cast("EventLoop", loop), "/nonexistent", list, lambda message, fds: None)


ADDED = PodAdded(pod_uid="p", workload="w", identity="i", netns_cookie=1, addresses=())


def run_session(session: Session, loop: FakeLoop, *, seconds: float, descriptors: bool) -> None:
    """A session that the agent ends, or that ends for lack of descriptors, after some seconds."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    session.adopt(near)
    loop.now += seconds
    with far:
        agent: Channel[ToAgent] = Channel(far, ToAgent)  # type: ignore[arg-type]  # a union
        agent.send(CounterAck(1))
        if descriptors:
            far.shutdown(socket.SHUT_RDWR)
            session.on_ready(1)
        else:
            agent.send(ADDED, [far.fileno()] * 3)
            with no_descriptors():
                session.on_ready(1)
    assert not session.is_up


def test_worker_without_descriptors_backs_off(session: Session, loop: FakeLoop) -> None:
    for _ in range(12):
        run_session(session, loop, seconds=0.01, descriptors=False)
    assert loop.delays == sorted(loop.delays)
    assert loop.delays[-1] == session_module.MAX_DESCRIPTORS_DELAY_S
    assert sum(loop.delays) > 60  # 12 sessions; 221 before


def test_short_sessions_back_off_and_a_long_one_resets_the_delay(
    session: Session, loop: FakeLoop
) -> None:
    for _ in range(8):
        run_session(session, loop, seconds=0.01, descriptors=True)
    assert loop.delays[-1] == session_module.MAX_RECONNECT_DELAY_S
    run_session(session, loop, seconds=session_module.MIN_SESSION_S, descriptors=True)
    assert loop.delays[-1] == MIN_RECONNECT_DELAY_S


def test_dial_without_descriptors_is_retried(session: Session, loop: FakeLoop) -> None:
    with no_descriptors():
        session.dial()
    assert loop.delays == [MIN_RECONNECT_DELAY_S]


def test_delay_returns_to_its_limit_once_descriptors_are_free(
    session: Session, loop: FakeLoop
) -> None:
    for _ in range(12):
        run_session(session, loop, seconds=0.01, descriptors=False)
    run_session(session, loop, seconds=0.01, descriptors=True)
    assert loop.delays[-1] == session_module.MAX_RECONNECT_DELAY_S
