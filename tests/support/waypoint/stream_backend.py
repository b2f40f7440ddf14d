# SPDX-License-Identifier: Apache-2.0
"""A TCP server that sends its name and closes; with a context, over TLS."""

from __future__ import annotations

import socketserver
import ssl
import threading
from types import TracebackType


class _Handler(socketserver.BaseRequestHandler):
    name: bytes

    def handle(self) -> None:
        self.request.settimeout(5)
        self.request.sendall(self.name)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    context: ssl.SSLContext | None = None

    def finish_request(self, request: object, client_address: object) -> None:
        try:
            if self.context is not None:
                request = self.context.wrap_socket(request, server_side=True)  # type: ignore[arg-type]
            super().finish_request(request, client_address)  # type: ignore[arg-type]
        except OSError:
            pass


class StreamBackend:
    """A server on 127.0.0.1 at `port`."""

    def __init__(self, name: str, context: ssl.SSLContext | None = None) -> None:
        self.name = name
        handler = type("Handler", (_Handler,), {"name": name.encode()})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.context = context
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def __enter__(self) -> StreamBackend:
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
