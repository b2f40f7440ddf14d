# SPDX-License-Identifier: Apache-2.0
"""The proxy's health endpoints for the kubelet.

    GET /healthz/live     200 if every worker's event loop has turned recently
    GET /healthz/ready    200 if, in addition, all workers know the mesh and none drains
    otherwise 503 with the reasons, 404, or 400

Implements only the HTTP that a probe needs. Slow and oversized requests are disconnected. Every pod
can reach the port: `ConnectionShares` decides which connections stay open.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

from ztunnel.ipc.connection_shares import ConnectionShares
from ztunnel.proxy.io.event_loop import READ, EventLoop, Timer

REQUEST_TIMEOUT_S = 2.0  # a kubelet waits for one second by default
MAX_REQUEST_BYTES = 4096
MAX_CONNECTIONS = 64
MAX_CONNECTIONS_PER_SOURCE = 4  # a kubelet has two probes
MAX_ACCEPTS_PER_TURN = 64  # so that a flood of connections cannot delay requests
ACCEPT_PAUSE_S = 0.1  # when descriptors or memory run out
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}

Check = Callable[[], list[str]]  # the reasons for a failure; empty if the check passes


class HealthServer:
    """Answers probes on `sock`, a listening socket."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        checks: dict[str, Check],
        node_addresses: Iterable[str] = (),
    ) -> None:
        """`checks` by path. Connections from `node_addresses`, the kubelet's, have precedence."""
        sock.setblocking(False)
        self.loop = loop
        self.open: ConnectionShares[_ProbeConnection] = ConnectionShares(
            MAX_CONNECTIONS, MAX_CONNECTIONS_PER_SOURCE, node_addresses
        )
        self._checks = checks
        self._sock = sock
        self._watch()

    def on_ready(self, mask: int) -> None:
        for _ in range(MAX_ACCEPTS_PER_TURN):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                self.loop.unregister(self._sock.fileno())
                self.loop.call_later(ACCEPT_PAUSE_S, self._watch)
                return
            connection = _ProbeConnection(self, sock)
            evicted = self.open.add(connection, address[0])
            if evicted is not None:
                evicted.close()
            connection.on_ready(READ)  # a request that has arrived is answered before any eviction

    def _watch(self) -> None:
        if self._sock.fileno() >= 0:  # not closed meanwhile
            self.loop.register(self._sock.fileno(), READ, self)

    def on_failure(self, error: Exception) -> None:
        """Keep listening: the next probe may succeed."""

    def response(self, request: bytes) -> bytes:
        """The response to a request, of which only the request line counts."""
        words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or words[0] not in ("GET", "HEAD"):
            return _response(400, "only GET\n")
        check = self._checks.get(words[1])
        if check is None:
            return _response(404, "".join(f"{path}\n" for path in self._checks))
        reasons = check()
        body = "".join(f"{reason}\n" for reason in reasons or ["ok"])
        return _response(503 if reasons else 200, body)


class _ProbeConnection:
    """One connection, for one request."""

    def __init__(self, server: HealthServer, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._server = server
        self._sock: socket.socket | None = sock
        self._request = b""
        server.loop.register(sock.fileno(), READ, self)
        self._timer: Timer = server.loop.call_later(REQUEST_TIMEOUT_S, self.close)

    def on_ready(self, mask: int) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            data = sock.recv(MAX_REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._request += data
        if b"\r\n\r\n" in self._request:
            with suppress(OSError):  # the client has disconnected
                sock.send(self._server.response(self._request))  # fits into any send buffer
            self.close()
        elif not data or len(self._request) > MAX_REQUEST_BYTES:
            self.close()

    def on_failure(self, error: Exception) -> None:
        self.close()

    def close(self) -> None:
        """Close now, answered or not. Idempotent."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._timer.cancel()
            self._server.open.remove(self)
            self._server.loop.close(sock)


def _response(status: int, body: str) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n"
    )
    return (head + body).encode()
