# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 server that answers with what it received, as JSON."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Respond = Callable[[dict[str, Any]], tuple[int, dict[str, str]]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    backend: Backend
    respond: Respond | None = None

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        request = {
            "backend": self.backend.name,
            "method": self.command,
            "path": self.path,
            "headers": {k.lower(): v for k, v in self.headers.items()},
            "body": self.rfile.read(length).decode(),
        }
        self.backend.requests.append(request)
        status, headers = self.respond(request) if self.respond else (200, {})
        body = json.dumps(request).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        has_body = status >= HTTPStatus.OK
        if has_body:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if has_body and self.command != "HEAD":
            self.wfile.write(body)


class Backend:
    """A server on 127.0.0.1 at `port`, which records the requests that it received.

    `respond` may return another status and headers, and may sleep. `context`: serves TLS.
    """

    def __init__(
        self,
        name: str,
        respond: Respond | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self.requests: list[dict[str, Any]] = []
        handler = type(
            "Handler", (_Handler,), {"backend": self, "respond": respond and staticmethod(respond)}
        )
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def __enter__(self) -> Backend:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
