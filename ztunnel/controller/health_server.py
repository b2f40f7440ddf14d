# SPDX-License-Identifier: Apache-2.0
"""Answers the kubelet's probes: GET /healthz/live, GET /healthz/ready."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Health:
    """An HTTP server while it is entered. `port` 0 is any that is free, None is no server."""

    def __init__(self, port: int | None, is_ready: Callable[[], bool]) -> None:
        self._port = port
        self._is_ready = is_ready
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Health:
        """Listen. Raises OSError."""
        if self._port is not None:
            self._server = ThreadingHTTPServer(("", self._port), _handler(self._is_ready))
            threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return self._server.server_port

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _handler(is_ready: Callable[[], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # seconds for a request to come

        def do_GET(self) -> None:
            if self.path == "/healthz/live":
                self._answer(HTTPStatus.OK, "live")
            elif self.path == "/healthz/ready":
                if is_ready():
                    self._answer(HTTPStatus.OK, "ready")
                else:
                    self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "no answer of the API server")
            else:
                self._answer(HTTPStatus.NOT_FOUND, "not found")

        def _answer(self, status: HTTPStatus, text: str) -> None:
            body = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes are no news."""

    return Handler
