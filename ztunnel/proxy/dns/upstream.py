# SPDX-License-Identifier: Apache-2.0
"""One question to a name server that an app of a pod asked, from inside that pod.

    DatagramExchange: socket from the stock → sent → answered
                                            → silence → sent again → answered | failed
    StreamExchange:   dialled → sent → answered | failed

Each has a socket, so a port, and a random id of its own. A datagram counts only when it comes from
the server that was asked (the socket is connected), under the id, with the question as it was.
`done` is called once, with the answer under the client's id, or None.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ztunnel.dns.message import Question, is_response_to, with_id
from ztunnel.mesh.address import family as family_of
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.io.event_loop import READ, WRITE, EventLoop, Timer
from ztunnel.proxy.io.sockets import fin_on_close
from ztunnel.proxy.local_pod import Pod

SILENCE = 1.5  # seconds until a query is sent again; clients ask anew after 2.5 (musl) or 5 (glibc)
TRIES = 2
STREAM_TIME = 3.0  # seconds for an answer by TCP, with its connection
MOST_WRONG = 64  # datagrams that are no answer: beyond, somebody is guessing
LARGEST = 65535  # bytes of a message

Done = Callable[[bytes | None], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """A query as it came, and whom it was for."""

    server: SocketAddress
    wire: bytes
    question: Question


class DatagramExchange:
    """By UDP."""

    def __init__(self, loop: EventLoop, pod: Pod, asked: Asked, done: Done) -> None:
        self._loop = loop
        self._sockets = pod.udp_pools[family_of(asked.server.ip)]
        self._server = asked.server
        self._number = secrets.randbits(16)
        self._query = with_id(asked.wire, self._number)
        self._question = asked.question
        self._done: Done | None = done
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._tries = self._wrong = 0

    def start(self) -> None:
        """Go; `done` may be called before this returns."""
        self._sockets.acquire(self._got)

    def cancel(self) -> None:
        """Nobody waits for it any more: `done` is not called."""
        self._done = None
        self._finish(None)

    def on_ready(self, mask: int) -> None:
        while self._sock is not None:
            try:
                wire = self._sock.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError:  # the server's host says that nobody listens
                self._finish(None)
                return
            if is_response_to(self._question, self._number, wire):
                self._finish(with_id(wire, self._question.id))
                return
            self._wrong += 1
            if self._wrong >= MOST_WRONG:
                self._finish(None)

    def on_failure(self, error: Exception) -> None:
        self._finish(None)

    def _got(self, sock: socket.socket | None) -> None:
        if sock is None or self._done is None:
            if sock is not None:
                self._sockets.recycle(sock)
            self._finish(None)
            return
        self._sock = sock
        try:
            sock.connect((self._server.ip, self._server.port))
        except OSError:
            self._finish(None)
            return
        self._loop.register(sock.fileno(), READ, self)
        self._send()

    def _send(self) -> None:
        assert self._sock is not None
        if self._tries == TRIES:
            self._finish(None)
            return
        self._tries += 1
        try:
            self._sock.send(self._query)
        except BlockingIOError:
            pass  # as if it were lost on the way
        except OSError:
            self._finish(None)
            return
        self._timer = self._loop.call_later(SILENCE, self._send)

    def _finish(self, answer: bytes | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.unregister(sock.fileno())
            self._sockets.recycle(sock)
        done, self._done = self._done, None
        if done is not None:
            done(answer)


class StreamExchange:
    """By TCP: one message each way (RFC 7766 section 8), then the end."""

    def __init__(self, loop: EventLoop, pod: Pod, asked: Asked, done: Done) -> None:
        self._loop = loop
        self._number = secrets.randbits(16)
        self._left = len(asked.wire).to_bytes(2, "big") + with_id(asked.wire, self._number)
        self._question = asked.question
        self._done: Done | None = done
        self._sock: socket.socket | None = None
        self._read = bytearray()
        self._timer = loop.call_later(STREAM_TIME, self._expired)
        self._dial: Connector | None = Connector(
            loop, pod.socket_pool_for(asked.server), asked.server, self._dialled
        )

    def start(self) -> None:
        """Go; `done` may be called before this returns."""
        if self._dial is not None:
            self._dial.start()

    def cancel(self) -> None:
        """Nobody waits for it any more: `done` is not called."""
        self._done = None
        self._finish(None)

    def on_ready(self, mask: int) -> None:
        if self._sock is None:
            return
        try:
            self._write(self._sock)
            self._receive(self._sock)
        except BlockingIOError:
            return
        except OSError:
            self._finish(None)

    def on_failure(self, error: Exception) -> None:
        self._finish(None)

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        self._dial = None
        self._sock = sock
        if sock is None:
            self._finish(None)
            return
        self._loop.rebind(sock.fileno(), self)
        self._loop.modify(sock.fileno(), READ | WRITE)

    def _write(self, sock: socket.socket) -> None:
        if not self._left:
            return
        self._left = self._left[sock.send(self._left) :]
        if not self._left:
            self._loop.modify(sock.fileno(), READ)

    def _receive(self, sock: socket.socket) -> None:
        piece = sock.recv(LARGEST)
        self._read += piece
        size = int.from_bytes(self._read[:2], "big")
        if len(self._read) >= 2 + size and len(self._read) > 2:
            wire = bytes(self._read[2 : 2 + size])
            is_good = is_response_to(self._question, self._number, wire)
            self._finish(with_id(wire, self._question.id) if is_good else None)
        elif not piece:
            self._finish(None)

    def _expired(self) -> None:
        self._finish(None)

    def _finish(self, answer: bytes | None) -> None:
        self._timer.cancel()
        dial, self._dial = self._dial, None
        if dial is not None:
            dial.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            fin_on_close(sock)
            self._loop.close(sock)
        done, self._done = self._done, None
        if done is not None:
            done(answer)
