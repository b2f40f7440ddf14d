# SPDX-License-Identifier: Apache-2.0
"""One readiness loop per worker: epoll, timers, deferred calls. No threads, no asyncio.

One turn is:

    epoll → ready handlers → deferred calls → due timers → flushes → cleanups → closing of sockets

An exception in a handler ends only the connection or tunnel of that handler. Sockets are closed at
the end of a turn, so that an event that was already fetched never reaches a newer socket with the
same descriptor number.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import structlog

INPUT = select.EPOLLIN
READ = INPUT | select.EPOLLRDHUP
WRITE = select.EPOLLOUT
EDGE = select.EPOLLET
ACCEPT = select.EPOLLIN | select.EPOLLEXCLUSIVE  # wakes one of the workers that share it
HANGUP = select.EPOLLHUP | select.EPOLLERR
ENDING = select.EPOLLRDHUP | HANGUP  # read until the end of the data

MAX_EVENTS = 512  # per turn: bounds the delay of timers and flushes
NEVER = float("inf")
COMPACT_TIMERS = 4096  # rebuild the heap if it is larger and its first timer is cancelled

Callback = Callable[[], None]
log = structlog.get_logger()


class Handler(Protocol):
    """Receives the events of a descriptor."""

    def on_ready(self, mask: int) -> None:
        """The descriptor has these epoll events. Spurious calls must be harmless."""

    def on_failure(self, error: Exception) -> None:
        """`on_ready` or a callback of this object raised: release its resources."""


class Timer:
    """A scheduled call; `cancel` is cheap and may be repeated."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class EventLoop:
    """The loop. Call its methods only from the thread that runs it."""

    def __init__(self) -> None:
        self.now = time.monotonic()  # monotonic seconds, read once per turn
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._deferred: deque[Callback] = deque()
        self._flushes: deque[Callback] = deque()
        self._cleanups: deque[Callback] = deque()
        self._timers: list[Timer] = []
        self._timeouts: dict[float, deque[Timer]] = {}  # by delay, so each deque is in order
        self._closing: list[socket.socket] = []
        self._running = False

    # Descriptors

    def register(self, fd: int, mask: int, handler: Handler) -> None:
        """Watch `fd`; level-triggered unless the mask includes EDGE."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def modify(self, fd: int, mask: int) -> None:
        """Change the mask; with EDGE, current readiness is reported again."""
        self._epoll.modify(fd, mask)

    def rebind(self, fd: int, handler: Handler) -> None:
        """Replace the handler of a registered descriptor, without a system call."""
        self._handlers[fd] = handler

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`; no effect if it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self, sock: socket.socket, *, unshared: bool = False) -> None:
        """Drop the handler now and close the socket at the end of the turn.

        `unshared`: no other process or object has a descriptor of the socket, as with one that was
        accepted here. Then closing it removes it from the epoll, and a system call is saved.
        """
        if self._handlers.pop(sock.fileno(), None) is not None and not unshared:
            self._epoll.unregister(sock.fileno())
        self._closing.append(sock)

    # Calls

    def defer(self, callback: Callback) -> None:
        """Call after the handlers of this turn; a deferred call defers to the next turn."""
        self._deferred.append(callback)

    def at_end_of_turn(self, callback: Callback) -> None:
        """Call before the loop waits again: writes collected during the turn are sent there."""
        self._flushes.append(callback)

    def after_flushes(self, callback: Callback) -> None:
        """Call after the flushes: for cleanup that must not delay writes."""
        self._cleanups.append(callback)

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Call after `delay` seconds unless it is cancelled."""
        timer = Timer(self.now + delay, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def add_timeout(self, delay: float, callback: Callback) -> Timer:
        """`call_later` for calls that are nearly always cancelled and share few delays.

        Needs no sorting. Cancelled timers are removed once those before them are gone.
        """
        timeouts = self._timeouts.get(delay)
        if timeouts is None:
            timeouts = self._timeouts[delay] = deque()
        while timeouts and timeouts[0].callback is None:
            timeouts.popleft()
        timer = Timer(self.now + delay, callback)
        timeouts.append(timer)
        return timer

    # Running

    def run(self) -> None:
        """Run turns until `stop`."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        """End `run` after this turn."""
        self._running = False

    def turn(self, timeout: float | None = None) -> None:
        """Run one turn; wait at most `timeout` seconds, or until the next timer."""
        events = self._epoll.poll(self._wait(timeout), MAX_EVENTS)
        self.now = now = time.monotonic()
        handlers = self._handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is None:
                continue
            try:
                handler.on_ready(mask)
            except Exception as error:
                _fail(handler, error)
        if self._deferred:
            self._run_deferred()
        if self._timers and self._timers[0].when <= now:
            self._run_timers()
        for timeouts in self._timeouts.values():
            if timeouts and timeouts[0].when <= now:
                self._run_timeouts(timeouts)
        flushes = self._flushes
        while flushes:
            _call(flushes.popleft())
        cleanups = self._cleanups
        while cleanups:
            _call(cleanups.popleft())
        if self._closing:
            self._close_all()

    def _wait(self, timeout: float | None) -> float | None:
        if self._deferred or self._flushes or self._cleanups or self._closing:
            return 0.0
        first = self._timers[0].when if self._timers else NEVER
        for timeouts in self._timeouts.values():
            if timeouts and timeouts[0].when < first:
                first = timeouts[0].when
        if first == NEVER:
            return timeout
        until = max(0.0, first - time.monotonic())
        return until if timeout is None else min(until, timeout)

    def _run_deferred(self) -> None:
        for _ in range(len(self._deferred)):  # calls added meanwhile wait for the next turn
            _call(self._deferred.popleft())

    def _run_timers(self) -> None:
        timers = self._timers
        while timers and timers[0].when <= self.now:
            callback = heapq.heappop(timers).callback
            if callback is not None:
                _call(callback)
        if len(timers) > COMPACT_TIMERS and timers[0].callback is None:
            self._timers = [timer for timer in timers if timer.callback is not None]
            heapq.heapify(self._timers)

    def _run_timeouts(self, timeouts: deque[Timer]) -> None:
        while timeouts and (timeouts[0].callback is None or timeouts[0].when <= self.now):
            callback = timeouts.popleft().callback
            if callback is not None:
                _call(callback)

    def _close_all(self) -> None:
        closing, self._closing = self._closing, []
        for sock in closing:
            try:
                sock.close()
            except OSError as error:  # the descriptor is released all the same
                log.debug("close failed", error=str(error))


def call_contained(callback: Callable[..., None], *arguments: object) -> None:
    """Call; an exception fails only the object whose method it is, not the caller."""
    try:
        callback(*arguments)
    except Exception as error:
        method = callback.func if isinstance(callback, partial) else callback
        _fail(getattr(method, "__self__", None), error)


def _call(callback: Callback) -> None:
    try:
        callback()
    except Exception as error:
        _fail(getattr(callback, "__self__", None), error)


def _fail(owner: object, error: Exception) -> None:
    """Log the exception and let the owner release its resources, if it can."""
    log.error("handler failed", handler=type(owner).__name__, exc_info=error)
    on_failure = getattr(owner, "on_failure", None)
    if on_failure is None:
        return
    try:
        on_failure(error)
    except Exception as second:
        log.error("cleanup failed", handler=type(owner).__name__, exc_info=second)
