# SPDX-License-Identifier: Apache-2.0
"""Unconnected sockets inside a pod, made by the agent because only it may enter the pod.

A socket whose connection ended in order is made connectable again and kept, so that a missing
agent does not stop new connections. Sockets that once told the app a client address are kept
apart: they serve only connections that tell one anew.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable

from ztunnel.proxy.io.event_loop import EventLoop, Timer
from ztunnel.proxy.io.sockets import (
    disconnect,
    disconnect_datagram,
    fin_on_close,
    no_delay,
    reset_on_close,
)

MIN_REQUEST_BATCH = 16  # sockets asked for at once at least
LOW_WATERMARK = 8  # ask for more below this
MAX_REQUEST_BATCH = 128  # well below SCM_MAX_FD
MAX_RECYCLED = 64  # recycled sockets kept of each kind
ACQUIRE_TIMEOUT_S = 5.0  # seconds a connection waits for a socket before it is refused
REQUEST_RETRY_S = 1.0  # seconds after which an unanswered request is repeated

SocketCallback = Callable[[socket.socket | None], None]


class SocketPool:
    """The sockets of one pod and one family."""

    def __init__(self, loop: EventLoop, ask: Callable[[int], None]) -> None:
        """`ask(count)` requests sockets from the agent, or does nothing while it is away."""
        self._loop = loop
        self._ask = ask
        self._fresh: list[socket.socket] = []
        self._inbound: list[socket.socket] = []  # have told a client address before
        self._waiting: deque[_Waiter] = deque()
        self._closed = False
        self._asked = 0
        self._asked_at = 0.0

    @property
    def size(self) -> int:
        return len(self._fresh) + len(self._inbound)

    def take(self, taker: SocketCallback, *, inbound: bool = False) -> None:
        """Call `taker` with a socket, at once if there is one, or with None after WAIT."""
        sock = self._pop(inbound=inbound)
        if self.size < LOW_WATERMARK and not self._closed:
            self.order()
        if sock is not None:
            taker(sock)
            return
        if self._closed:
            taker(None)
            return
        self._waiting.append(_Waiter(self._loop, taker, inbound))
        self.order()

    def add(self, socks: list[socket.socket]) -> None:
        """Fresh sockets from the agent."""
        self._asked = max(0, self._asked - len(socks))
        for sock in socks:
            self._fit(sock)
            if self._closed:
                self._loop.close(sock)
            else:
                self._fresh.append(sock)
        self._serve_waiting()

    def give_back(self, sock: socket.socket, *, inbound: bool = False) -> None:
        """Recycle a socket after an orderly end, or close it; the loop must not watch it."""
        kept = self._inbound if inbound else self._fresh
        if self._closed or len(kept) >= MAX_RECYCLED or not self._renew(sock):
            fin_on_close(sock)
            self._loop.close(sock)
            return
        kept.append(sock)
        self._serve_waiting()

    def order(self) -> None:
        """Ask the agent for as many as are wanted, unless it was asked just now."""
        overdue = self._loop.now - self._asked_at > REQUEST_RETRY_S
        wanted = len(self._waiting) + MIN_REQUEST_BATCH - (0 if overdue else self._asked)
        if wanted < LOW_WATERMARK:
            return
        count = min(max(MIN_REQUEST_BATCH, wanted), MAX_REQUEST_BATCH)
        self._asked = count if overdue else self._asked + count
        self._asked_at = self._loop.now
        self._ask(count)

    def restock(self) -> None:
        """Order if the stock is low."""
        if self.size < LOW_WATERMARK:
            self.order()

    def forget_orders(self) -> None:
        """A new agent knows nothing of what was asked of the former."""
        self._asked = 0

    def close(self) -> None:
        """The pod is gone: its sockets would keep its network namespace alive."""
        self._closed = True
        for sock in (*self._fresh, *self._inbound):
            self._loop.close(sock)
        self._fresh.clear()
        self._inbound.clear()
        while self._waiting:
            self._waiting.popleft().give(None)

    def _fit(self, sock: socket.socket) -> None:
        """What a fresh socket needs."""
        no_delay(sock)
        reset_on_close(sock)

    def _renew(self, sock: socket.socket) -> bool:
        """Make it as good as fresh, if that is possible."""
        return disconnect(sock)

    def _pop(self, *, inbound: bool) -> socket.socket | None:
        if inbound and self._inbound:
            return self._inbound.pop()
        return self._fresh.pop() if self._fresh else None

    def _serve_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            waiter = self._waiting.popleft()
            if not waiter.waits:
                continue
            sock = self._pop(inbound=waiter.inbound)
            if sock is None:
                self._waiting.append(waiter)  # the other kind may still be served
            else:
                waiter.give(sock)


class DatagramSocketPool(SocketPool):
    """The same of UDP sockets: each query to a name server has one, so a port of its own."""

    def _fit(self, sock: socket.socket) -> None:
        """Nothing."""

    def _renew(self, sock: socket.socket) -> bool:
        return disconnect_datagram(sock)


class _Waiter:
    """A connection that waits for a socket."""

    __slots__ = ("_taker", "_timer", "inbound", "waits")

    def __init__(self, loop: EventLoop, taker: SocketCallback, inbound: bool) -> None:
        self.inbound = inbound
        self._taker = taker
        self._timer: Timer = loop.limit(ACQUIRE_TIMEOUT_S, self._expired)
        self.waits = True

    def give(self, sock: socket.socket | None) -> None:
        if self.waits:
            self.waits = False
            self._timer.cancel()
            self._taker(sock)

    def _expired(self) -> None:
        self.give(None)
