# SPDX-License-Identifier: Apache-2.0
"""The proxy's own readiness and liveness for a kubelet, over HTTP.

    GET /healthz/live     200 when every worker's loop turned within the last moments
    GET /healthz/ready    200 when besides all of them know the mesh, and none drains
    else 503 and why, 404, 400

As little HTTP as a probe needs; whoever sends slowly, or more, is cut off.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import suppress

from ztunnel.proxy.io.event_loop import READ, Loop, Timer

PATIENCE = 2.0  # seconds for a request; a kubelet waits for one
LARGEST = 4096  # bytes of a request
MOST = 64  # connections at a time
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}

Verdict = Callable[[], list[str]]  # what is wrong; nothing when all is well


class Probes:
    """Answers on `sock`, a listening socket; `verdicts` by path."""

    def __init__(self, loop: Loop, sock: socket.socket, verdicts: dict[str, Verdict]) -> None:
        sock.setblocking(False)
        self.loop = loop
        self.verdicts = verdicts
        self.open = 0
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
                    return  # out of descriptors: the kubelet asks again
                continue
            if self.open < MOST:
                _Asked(self, sock)
            else:
                sock.close()

    def on_failure(self, error: Exception) -> None:
        """It stays: the next probe may fare better."""

    def answer(self, request: bytes) -> bytes:
        """The whole answer to the first line of a request."""
        words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or words[0] not in ("GET", "HEAD"):
            return _response(400, "only GET\n")
        verdict = self.verdicts.get(words[1])
        if verdict is None:
            return _response(404, "".join(f"{path}\n" for path in self.verdicts))
        wrong = verdict()
        return _response(503 if wrong else 200, "".join(f"{each}\n" for each in wrong or ["ok"]))


class _Asked:
    """One connection, for one request."""

    def __init__(self, home: Probes, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._home = home
        self._sock: socket.socket | None = sock
        self._read = b""
        home.open += 1
        home.loop.register(sock.fileno(), READ, self)
        self._timer: Timer = home.loop.call_later(PATIENCE, self._end)

    def on_ready(self, mask: int) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            piece = sock.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._read += piece
        if b"\r\n\r\n" in self._read:
            with suppress(OSError):  # nobody waits for it any more
                sock.send(self._home.answer(self._read))  # fits into any socket's buffer
            self._end()
        elif not piece or len(self._read) > LARGEST:
            self._end()

    def on_failure(self, error: Exception) -> None:
        self._end()

    def _end(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._timer.cancel()
            self._home.open -= 1
            self._home.loop.close(sock)


def _response(status: int, body: str) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n"
    )
    return (head + body).encode()
