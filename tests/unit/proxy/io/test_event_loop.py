# SPDX-License-Identifier: Apache-2.0
"""Timeouts and closing of sockets in the event loop."""

from __future__ import annotations

import socket

import pytest

from ztunnel.proxy.io.event_loop import READ, EventLoop


def test_timeouts_and_timers_are_called_when_due() -> None:
    loop, called = EventLoop(), list[str]()
    loop.add_timeout(0.02, lambda: called.append("timeout"))
    loop.call_later(0.01, lambda: called.append("timer"))
    loop.turn(0)
    assert called == []
    while len(called) < 2:
        loop.turn(60)  # if the wait ignored the timeout, the test would time out
    assert called == ["timer", "timeout"]


def test_cancelled_timeout_does_not_delay_a_later_one() -> None:
    loop, called = EventLoop(), list[str]()
    first = loop.add_timeout(0.01, lambda: called.append("first"))
    loop.add_timeout(0.01, lambda: called.append("second"))
    first.cancel()
    while not called:
        loop.turn(60)
    assert called == ["second"]


def test_cancelled_timeouts_are_removed() -> None:
    loop = EventLoop()
    for _ in range(1000):
        loop.add_timeout(20.0, lambda: None).cancel()
    assert sum(map(len, loop._timeouts.values())) == 1


def test_exception_in_a_timeout_does_not_stop_the_loop(capfd: pytest.CaptureFixture[str]) -> None:
    loop, called = EventLoop(), list[str]()

    def fail() -> None:
        raise RuntimeError("on purpose")

    loop.add_timeout(0.0, fail)
    loop.add_timeout(0.0, lambda: called.append("next"))
    loop.turn(0)
    loop.turn(0)
    assert called == ["next"]


class Counter:
    """Counts the events of a descriptor."""

    def __init__(self) -> None:
        self.calls = 0

    def on_ready(self, mask: int) -> None:
        self.calls += 1

    def on_failure(self, error: Exception) -> None:
        raise AssertionError(error)


def test_closing_an_unshared_socket_removes_it_from_epoll() -> None:
    loop, counter = EventLoop(), Counter()
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    loop.register(number, READ, counter)
    theirs.send(b"x")
    loop.close(ours, unshared=True)
    loop.turn(0)
    again, other = socket.socketpair()
    assert number in (again.fileno(), other.fileno())
    loop.register(number, READ, counter)  # EEXIST if it were still registered
    loop.turn(0)
    assert counter.calls == 0
    for sock in (theirs, again, other):
        sock.close()
