# SPDX-License-Identifier: Apache-2.0
"""One query to a name server, sent from inside the pod of the application that addressed it.

    DatagramExchange: socket from the pool → sent → response
                                           → timeout → sent again → response | failed
    StreamExchange:   connected → sent → response | failed

Each exchange has its own socket, hence its own port, and a random id. A response by UDP is accepted
only from the name server (the socket is connected), with that id and the unchanged question.
`on_done` is called once, with the response under the client's id, or with None.
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

UDP_RETRY_TIMEOUT_S = 1.5  # clients retry after 2.5 s (musl) or 5 s (glibc)
MAX_UDP_ATTEMPTS = 2
TCP_TIMEOUT_S = 3.0  # including the connect
MAX_WRONG_DATAGRAMS = 64  # then the exchange fails: somebody guesses ids
MAX_MESSAGE_BYTES = 65535

OnDone = Callable[[bytes | None], None]


@dataclass(frozen=True, slots=True)
class DnsQuery:
    """A query as received, and the name server that it was addressed to."""

    server: SocketAddress
    wire: bytes
    question: Question


class DatagramExchange:
    """A query by UDP."""

    def __init__(self, loop: EventLoop, pod: Pod, query: DnsQuery, on_done: OnDone) -> None:
        self._loop = loop
        self._sockets = pod.udp_pools[family_of(query.server.ip)]
        self._server = query.server
        self._id = secrets.randbits(16)
        self._wire = with_id(query.wire, self._id)
        self._question = query.question
        self._on_done: OnDone | None = on_done
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._attempts = self._wrong = 0

    def start(self) -> None:
        """Send the query. `on_done` may be called before this returns."""
        self._sockets.acquire(self._on_socket)

    def cancel(self) -> None:
        """Stop without calling `on_done`."""
        self._on_done = None
        self._finish(None)

    def on_ready(self, mask: int) -> None:
        while self._sock is not None:
            try:
                wire = self._sock.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # ICMP: the port is closed
                self._finish(None)
                return
            if is_response_to(self._question, self._id, wire):
                self._finish(with_id(wire, self._question.id))
                return
            self._wrong += 1
            if self._wrong >= MAX_WRONG_DATAGRAMS:
                self._finish(None)

    def on_failure(self, error: Exception) -> None:
        self._finish(None)

    def _on_socket(self, sock: socket.socket | None) -> None:
        if sock is None or self._on_done is None:
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
        if self._attempts == MAX_UDP_ATTEMPTS:
            self._finish(None)
            return
        self._attempts += 1
        try:
            self._sock.send(self._wire)
        except BlockingIOError:
            pass  # equivalent to a lost datagram
        except OSError:
            self._finish(None)
            return
        self._timer = self._loop.call_later(UDP_RETRY_TIMEOUT_S, self._send)

    def _finish(self, response: bytes | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.unregister(sock.fileno())
            self._sockets.recycle(sock)
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(response)


class StreamExchange:
    """A query by TCP (RFC 7766 section 8): one message in each direction, then the close."""

    def __init__(self, loop: EventLoop, pod: Pod, query: DnsQuery, on_done: OnDone) -> None:
        self._loop = loop
        self._id = secrets.randbits(16)
        self._unsent = len(query.wire).to_bytes(2, "big") + with_id(query.wire, self._id)
        self._question = query.question
        self._on_done: OnDone | None = on_done
        self._sock: socket.socket | None = None
        self._received = bytearray()
        self._timer = loop.call_later(TCP_TIMEOUT_S, self._on_timeout)
        self._connector: Connector | None = Connector(
            loop, pod.socket_pool_for(query.server), query.server, self._on_connected
        )

    def start(self) -> None:
        """Connect. `on_done` may be called before this returns."""
        if self._connector is not None:
            self._connector.start()

    def cancel(self) -> None:
        """Stop without calling `on_done`."""
        self._on_done = None
        self._finish(None)

    def on_ready(self, mask: int) -> None:
        if self._sock is None:
            return
        try:
            self._write(self._sock)
            self._read(self._sock)
        except BlockingIOError:
            return
        except OSError:
            self._finish(None)

    def on_failure(self, error: Exception) -> None:
        self._finish(None)

    def _on_connected(self, sock: socket.socket | None, reason: str) -> None:
        self._connector = None
        self._sock = sock
        if sock is None:
            self._finish(None)
            return
        self._loop.rebind(sock.fileno(), self)
        self._loop.modify(sock.fileno(), READ | WRITE)

    def _write(self, sock: socket.socket) -> None:
        if not self._unsent:
            return
        self._unsent = self._unsent[sock.send(self._unsent) :]
        if not self._unsent:
            self._loop.modify(sock.fileno(), READ)

    def _read(self, sock: socket.socket) -> None:
        data = sock.recv(MAX_MESSAGE_BYTES)
        self._received += data
        size = int.from_bytes(self._received[:2], "big")
        if len(self._received) >= 2 + size and len(self._received) > 2:
            wire = bytes(self._received[2 : 2 + size])
            is_valid = is_response_to(self._question, self._id, wire)
            self._finish(with_id(wire, self._question.id) if is_valid else None)
        elif not data:
            self._finish(None)

    def _on_timeout(self) -> None:
        self._finish(None)

    def _finish(self, response: bytes | None) -> None:
        self._timer.cancel()
        connector, self._connector = self._connector, None
        if connector is not None:
            connector.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            fin_on_close(sock)
            self._loop.close(sock)
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(response)
