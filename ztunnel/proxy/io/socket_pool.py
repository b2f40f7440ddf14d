# SPDX-License-Identifier: Apache-2.0
"""Unconnected sockets inside a pod. The agent creates them: only it may enter the pod's netns.

After an orderly end of its connection a socket is disconnected and reused, so that new connections
work while the agent is down. Sockets that once carried a client address (`set_client_address`) form
a second set: they serve only connections that set the address again.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable

from ztunnel.proxy.io.event_loop import EventLoop, Timer, call_contained
from ztunnel.proxy.io.sockets import (
    disconnect,
    disconnect_datagram,
    fin_on_close,
    no_delay,
    reset_on_close,
)

MIN_REQUEST_BATCH = 16  # sockets per request to the agent, at least
MAX_REQUEST_BATCH = 128  # sockets per request; well below SCM_MAX_FD
LOW_WATERMARK = 8  # request more below this
MAX_RECYCLED = 64  # reusable sockets of each set
ACQUIRE_TIMEOUT_S = 5.0  # a connection that waits longer for a socket is refused
REQUEST_RETRY_S = 1.0  # an unanswered request is repeated after this time

SocketCallback = Callable[[socket.socket | None], None]


class SocketPool:
    """The sockets of one pod and one address family.

    A callback may acquire and recycle sockets, and close the pool, before it returns. An exception
    in a callback fails that connection only.
    """

    def __init__(self, loop: EventLoop, request: Callable[[int], None]) -> None:
        """`request(count)` asks the agent for sockets; it does nothing while the agent is down."""
        self._loop = loop
        self._request = request
        self._fresh: list[socket.socket] = []
        self._inbound: list[socket.socket] = []  # carried a client address before
        self._waiting: deque[_Waiter] = deque()
        self._serving = False
        self._closed = False
        self._requested = 0
        self._requested_at = 0.0

    @property
    def size(self) -> int:
        return len(self._fresh) + len(self._inbound)

    def acquire(self, callback: SocketCallback, *, inbound: bool = False) -> None:
        """Call `callback` with a socket, at once if there is one, or None after a timeout."""
        sock = self._pop(inbound=inbound)
        if self.size < LOW_WATERMARK and not self._closed:
            self.request()
        if sock is not None:
            callback(sock)
            return
        if self._closed:
            callback(None)
            return
        self._drop_expired()
        self._waiting.append(_Waiter(self._loop, callback, inbound))
        self.request()

    def add(self, socks: list[socket.socket]) -> None:
        """Add fresh sockets from the agent."""
        self._requested = max(0, self._requested - len(socks))
        for sock in socks:
            self._prepare(sock)
            if self._closed:
                self._loop.close(sock)
            else:
                self._fresh.append(sock)
        self._serve_waiting()

    def recycle(self, sock: socket.socket, *, inbound: bool = False) -> None:
        """Reuse a socket after an orderly end, or close it; the loop must not watch it."""
        reusable = self._inbound if inbound else self._fresh
        if self._closed or len(reusable) >= MAX_RECYCLED or not self._disconnect(sock):
            fin_on_close(sock)
            self._loop.close(sock)
            return
        reusable.append(sock)
        self._serve_waiting()

    def request(self) -> None:
        """Request as many sockets as are needed, unless a recent request covers them."""
        overdue = self._loop.now - self._requested_at > REQUEST_RETRY_S
        needed = len(self._waiting) + MIN_REQUEST_BATCH - (0 if overdue else self._requested)
        if needed < LOW_WATERMARK:
            return
        count = min(max(MIN_REQUEST_BATCH, needed), MAX_REQUEST_BATCH)
        self._requested = count if overdue else self._requested + count
        self._requested_at = self._loop.now
        self._request(count)

    def refill(self) -> None:
        """Request sockets if the pool is low."""
        if self.size < LOW_WATERMARK:
            self.request()

    def reset_requests(self) -> None:
        """The agent restarted: earlier requests are lost."""
        self._requested = 0

    def close(self) -> None:
        """Close all sockets: they would keep the removed pod's network namespace alive."""
        self._closed = True
        for sock in (*self._fresh, *self._inbound):
            self._loop.close(sock)
        self._fresh.clear()
        self._inbound.clear()
        while self._waiting:
            self._waiting.popleft().resolve(None)

    def _prepare(self, sock: socket.socket) -> None:
        """Set the options of a fresh socket."""
        no_delay(sock)
        reset_on_close(sock)

    def _disconnect(self, sock: socket.socket) -> bool:
        """Make a used socket connectable again; False if that is not possible."""
        return disconnect(sock)

    def _pop(self, *, inbound: bool) -> socket.socket | None:
        if inbound and self._inbound:
            return self._inbound.pop()
        return self._fresh.pop() if self._fresh else None

    def _serve_waiting(self) -> None:
        """Serve waiters in order. A call from within a callback leaves that to the outer call."""
        if self._serving:
            return
        self._serving = True
        try:
            self._drop_expired()
            while (waiter := self._next_waiter()) is not None:
                waiter.resolve(self._pop(inbound=waiter.inbound))
        finally:
            self._serving = False

    def _next_waiter(self) -> _Waiter | None:
        """Remove and return the first waiter for which there is a socket."""
        if not self.size:
            return None
        for index, waiter in enumerate(self._waiting):
            if waiter.is_pending and (self._fresh or waiter.inbound):
                del self._waiting[index]
                return waiter
        return None

    def _drop_expired(self) -> None:
        """Waiters expire in the order of their arrival."""
        while self._waiting and not self._waiting[0].is_pending:
            self._waiting.popleft()


class DatagramSocketPool(SocketPool):
    """UDP sockets: each query to a name server uses its own, hence its own source port."""

    def _prepare(self, sock: socket.socket) -> None:
        """UDP sockets need no options."""

    def _disconnect(self, sock: socket.socket) -> bool:
        return disconnect_datagram(sock)


class _Waiter:
    """A connection that waits for a socket."""

    __slots__ = ("_callback", "_timer", "inbound", "is_pending")

    def __init__(self, loop: EventLoop, callback: SocketCallback, inbound: bool) -> None:
        self.inbound = inbound
        self.is_pending = True
        self._callback = callback
        self._timer: Timer = loop.add_timeout(ACQUIRE_TIMEOUT_S, self._expired)

    def resolve(self, sock: socket.socket | None) -> None:
        """Deliver the result; only the first one counts."""
        if self.is_pending:
            self.is_pending = False
            self._timer.cancel()
            call_contained(self._callback, sock)

    def _expired(self) -> None:
        self.resolve(None)
