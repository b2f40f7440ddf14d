# SPDX-License-Identifier: Apache-2.0
"""One readiness loop per worker: epoll, timers, deferred calls. No threads, no asyncio.

An exception in a handler ends what that handler serves and nothing else. One turn is:

    epoll → ready handlers → deferred calls → due timers → flushes → aftermath → closing of sockets

Sockets are closed only at the end of a turn, so that an event already fetched can never reach
a newer socket that got the same descriptor number.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

INPUT = select.EPOLLIN
READ = INPUT | select.EPOLLRDHUP
WRITE = select.EPOLLOUT
EDGE = select.EPOLLET
ACCEPT = select.EPOLLIN | select.EPOLLEXCLUSIVE  # one of the workers that share it wakes
HANGUP = select.EPOLLHUP | select.EPOLLERR
ENDING = select.EPOLLRDHUP | HANGUP  # a read must go on until it meets the end

MAX_EVENTS = 512  # of one turn: bounds how long timers and flushes wait
NEVER = float("inf")
COMPACT_AT = 4096  # cancelled timers that make it worth to rebuild the heap

Callback = Callable[[], None]
log = structlog.get_logger()


class Handler(Protocol):
    """What serves a descriptor."""

    def on_ready(self, mask: int) -> None:
        """The descriptor has these epoll events; spurious ones must do no harm."""

    def on_failure(self, error: Exception) -> None:
        """`on_ready` or a callback of this object raised: let go of what it serves."""


class Timer:
    """A call at a time; `cancel` is cheap and may come twice."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class EventLoop:
    """The loop. All methods are for the thread that runs it."""

    def __init__(self) -> None:
        self.now = time.monotonic()  # seconds, read once a turn
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._deferred: deque[Callback] = deque()
        self._flushes: deque[Callback] = deque()
        self._aftermath: deque[Callback] = deque()
        self._timers: list[Timer] = []
        self._limits: dict[float, deque[Timer]] = {}  # by delay, so each in order
        self._closing: list[socket.socket] = []
        self._running = False

    # Descriptors

    def register(self, fd: int, mask: int, handler: Handler) -> None:
        """Watch `fd`; without EDGE in the mask it is level-triggered."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def modify(self, fd: int, mask: int) -> None:
        """Change the mask; with EDGE, what is ready already is reported again."""
        self._epoll.modify(fd, mask)

    def rebind(self, fd: int, handler: Handler) -> None:
        """Give a registered descriptor to another handler: no system call."""
        self._handlers[fd] = handler

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`; nothing if it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Drop the handler of a descriptor that is closed already."""
        self._handlers.pop(fd, None)

    def close(self, sock: socket.socket, *, sole: bool = False) -> None:
        """Forget the socket now and close it at the end of the turn.

        `sole`: no other process or object has a descriptor of it, as with what was accepted here:
        then the close itself takes it out of the epoll.
        """
        if self._handlers.pop(sock.fileno(), None) is not None and not sole:
            self._epoll.unregister(sock.fileno())
        self._closing.append(sock)

    # Calls

    def defer(self, callback: Callback) -> None:
        """Call in the next pass over the deferred calls, after I/O had its turn."""
        self._deferred.append(callback)

    def at_end_of_turn(self, callback: Callback) -> None:
        """Call before the loop waits again: where small writes are gathered and sent."""
        self._flushes.append(callback)

    def after_flushes(self, callback: Callback) -> None:
        """Call once all that others wait for has been sent: what is over can be tidied then."""
        self._aftermath.append(callback)

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Call after `delay` seconds unless cancelled."""
        timer = Timer(self.now + delay, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def limit(self, delay: float, callback: Callback) -> Timer:
        """`call_later` for what is nearly always cancelled, with one of few delays.

        Costs no sorting, and those that are cancelled go when those before them have.
        """
        limits = self._limits.get(delay)
        if limits is None:
            limits = self._limits[delay] = deque()
        while limits and limits[0].callback is None:
            limits.popleft()
        timer = Timer(self.now + delay, callback)
        limits.append(timer)
        return timer

    # Running

    def run(self) -> None:
        """Turn until `stop`."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        """End `run` after this turn."""
        self._running = False

    def turn(self, timeout: float | None = None) -> None:
        """One turn; waits at most `timeout` seconds, or until the next timer."""
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
        for limits in self._limits.values():
            if limits and limits[0].when <= now:
                self._run_limits(limits)
        flushes = self._flushes
        while flushes:
            _call(flushes.popleft())
        aftermath = self._aftermath
        while aftermath:
            _call(aftermath.popleft())
        if self._closing:
            self._close_all()

    def _wait(self, timeout: float | None) -> float | None:
        if self._deferred or self._flushes or self._aftermath or self._closing:
            return 0.0
        first = self._timers[0].when if self._timers else NEVER
        for limits in self._limits.values():
            if limits and limits[0].when < first:
                first = limits[0].when
        if first == NEVER:
            return timeout
        until = max(0.0, first - time.monotonic())
        return until if timeout is None else min(until, timeout)

    def _run_deferred(self) -> None:
        for _ in range(len(self._deferred)):  # those added meanwhile wait for I/O
            _call(self._deferred.popleft())

    def _run_timers(self) -> None:
        timers = self._timers
        while timers and timers[0].when <= self.now:
            callback = heapq.heappop(timers).callback
            if callback is not None:
                _call(callback)
        if len(timers) > COMPACT_AT and timers[0].callback is None:
            self._timers = [timer for timer in timers if timer.callback is not None]
            heapq.heapify(self._timers)

    def _run_limits(self, limits: deque[Timer]) -> None:
        while limits and (limits[0].callback is None or limits[0].when <= self.now):
            callback = limits.popleft().callback
            if callback is not None:
                _call(callback)

    def _close_all(self) -> None:
        closing, self._closing = self._closing, []
        for sock in closing:
            try:
                sock.close()
            except OSError as error:  # the descriptor is released all the same
                log.debug("close failed", error=str(error))


def _call(callback: Callback) -> None:
    try:
        callback()
    except Exception as error:
        _fail(getattr(callback, "__self__", None), error)


def _fail(owner: object, error: Exception) -> None:
    """Log the bug and let the owner, if it can, release what it serves."""
    log.error("handler failed", handler=type(owner).__name__, exc_info=error)
    on_failure = getattr(owner, "on_failure", None)
    if on_failure is None:
        return
    try:
        on_failure(error)
    except Exception as second:
        log.error("cleanup failed", handler=type(owner).__name__, exc_info=second)
