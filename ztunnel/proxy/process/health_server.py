# SPDX-License-Identifier: Apache-2.0
"""The proxy's health endpoints for the kubelet.

    GET /healthz/live     200 if every worker's event loop has turned recently
    GET /healthz/ready    200 if, in addition, all workers know the mesh and none drains
    otherwise 503 with the reasons, 404, or 400

Implements only the HTTP that a probe needs. Slow and oversized requests are disconnected.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import suppress

from ztunnel.proxy.io.event_loop import READ, EventLoop, Timer

REQUEST_TIMEOUT_S = 2.0  # a kubelet waits for one second by default
MAX_REQUEST_BYTES = 4096
MAX_CONNECTIONS = 64
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}

Check = Callable[[], list[str]]  # the reasons for a failure; empty if the check passes


class HealthServer:
    """Answers probes on `sock`, a listening socket; `checks` by path."""

    def __init__(self, loop: EventLoop, sock: socket.socket, checks: dict[str, Check]) -> None:
        sock.setblocking(False)
        self.loop = loop
        self.open = 0  # connections
        self._checks = checks
        self._sock = sock
        loop.register(sock.fileno(), READ, self)

    def on_ready(self, mask: int) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    return  # out of descriptors: the kubelet probes again
                continue
            if self.open < MAX_CONNECTIONS:
                _ProbeConnection(self, sock)
            else:
                sock.close()

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
        server.open += 1
        server.loop.register(sock.fileno(), READ, self)
        self._timer: Timer = server.loop.call_later(REQUEST_TIMEOUT_S, self._close)

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
            self._close()
        elif not data or len(self._request) > MAX_REQUEST_BYTES:
            self._close()

    def on_failure(self, error: Exception) -> None:
        self._close()

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._timer.cancel()
            self._server.open -= 1
            self._server.loop.close(sock)


def _response(status: int, body: str) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n"
    )
    return (head + body).encode()
