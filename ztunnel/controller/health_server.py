# SPDX-License-Identifier: Apache-2.0
"""HTTP endpoints for the kubelet's probes: GET /healthz/live, GET /healthz/ready."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REQUEST_TIMEOUT_S = 5


class HealthServer:
    """Serves while the context is entered. Port 0: any free port; None: no server."""

    def __init__(self, port: int | None, is_ready: Callable[[], bool]) -> None:
        self._port = port
        self._is_ready = is_ready
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> HealthServer:
        """Listen. Raises OSError."""
        if self._port is not None:
            self._server = ThreadingHTTPServer(("", self._port), _handler(self._is_ready))
            threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        return self._server.server_port

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _handler(is_ready: Callable[[], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S

        def do_GET(self) -> None:
            if self.path == "/healthz/live":
                self._respond(HTTPStatus.OK, "live")
            elif self.path != "/healthz/ready":
                self._respond(HTTPStatus.NOT_FOUND, "not found")
            elif is_ready():
                self._respond(HTTPStatus.OK, "ready")
            else:
                self._respond(HTTPStatus.SERVICE_UNAVAILABLE, "API server not reachable")

        def _respond(self, status: HTTPStatus, text: str) -> None:
            body = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Do not log probes."""

    return Handler
