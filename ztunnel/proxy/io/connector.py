# SPDX-License-Identifier: Apache-2.0
"""Establishes one TCP connection from inside a pod: acquires a socket and dials with a timeout."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.io.event_loop import EDGE, READ, WRITE, EventLoop, Timer
from ztunnel.proxy.io.socket_pool import SocketPool
from ztunnel.proxy.io.sockets import CONNECT_TIMEOUT_S, start_connect

Prepare = Callable[[socket.socket], None]
Done = Callable[[socket.socket | None, str], None]


class Connector:
    """Calls `done` once: with a connected socket that the loop watches, or with None and why."""

    __slots__ = ("_done", "_loop", "_prepare", "_sock", "_sockets", "_timer", "_to")

    def __init__(
        self,
        loop: EventLoop,
        sockets: SocketPool,
        to: SocketAddress,
        done: Done,
        prepare: Prepare | None = None,
    ) -> None:
        """`prepare` is called before dialing: it sets the client address that the server sees."""
        self._loop = loop
        self._sockets = sockets
        self._to = to
        self._done: Done | None = done
        self._prepare = prepare
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        """Start; `done` may be called before this returns."""
        self._sockets.acquire(self._dial, inbound=self._prepare is not None)

    def cancel(self) -> None:
        """Stop; `done` is not called."""
        self._done = None
        if self._timer is not None:
            self._timer.cancel()
        if self._sock is not None:
            self._loop.close(self._sock)
            self._sock = None

    def on_ready(self, mask: int) -> None:
        if self._sock is None:
            return
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail(os.strerror(error))
        elif mask & WRITE:
            self._loop.modify(self._sock.fileno(), READ | WRITE | EDGE)  # report all events again
            self._finish()

    def on_failure(self, error: Exception) -> None:
        self._fail(f"internal error: {error}")

    def _dial(self, sock: socket.socket | None) -> None:
        if sock is None:
            self._fail("no socket inside the pod: the agent does not respond")
            return
        if self._done is None:  # cancelled while it waited for the socket
            self._sockets.recycle(sock, inbound=self._prepare is not None)
            return
        self._sock = sock
        try:
            if self._prepare is not None:
                self._prepare(sock)
            connected = start_connect(sock, self._to)
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        if connected:
            self._loop.register(sock.fileno(), READ | EDGE, self)
            self._finish()
        else:
            self._loop.register(sock.fileno(), READ | WRITE | EDGE, self)
            self._timer = self._loop.add_timeout(CONNECT_TIMEOUT_S, self._expired)

    def _expired(self) -> None:
        self._fail(f"no answer within {CONNECT_TIMEOUT_S:.0f} s")

    def _finish(self) -> None:
        sock, self._sock = self._sock, None
        if self._timer is not None:
            self._timer.cancel()
        done, self._done = self._done, None
        if done is not None:
            done(sock, "")

    def _fail(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.unregister(sock.fileno())
            self._sockets.recycle(sock, inbound=self._prepare is not None)
        done, self._done = self._done, None
        if done is not None:
            done(None, f"connect to {self._to}: {reason}")
