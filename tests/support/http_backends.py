# SPDX-License-Identifier: Apache-2.0
"""HTTP servers that answer as the request asks, and a client that sends a PROXY header."""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from ztunnel.mesh.headers.proxy_protocol import encode_proxy_header
from ztunnel.mesh.model import SocketAddress

CLIENT = SocketAddress("10.0.0.9", 40000)


class Backend:
    """Runs while the context is entered. Records the headers of each request.

    `/status/N` is answered with N, `/slow/S` after S seconds; every answer has the header
    `x-backend` with the server's name, and those of `headers`.
    """

    def __init__(self, name: str, context: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.headers: dict[str, str] = {}
        self.status = 200
        self.body = name.encode()
        self.requests: list[tuple[str, dict[str, str]]] = []
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                backend.requests.append(
                    (self.path, {name.lower(): value for name, value in self.headers.items()})
                )
                length = int(self.headers.get("content-length") or 0)
                self.rfile.read(length)
                action, value = self._action()
                if action == "slow":
                    time.sleep(float(value))
                body = backend.body
                self.send_response(int(value) if action == "status" else backend.status)
                self.send_header("x-backend", backend.name)
                for header, text in backend.headers.items():
                    self.send_header(header, text)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.do_GET()

            def _action(self) -> list[str]:
                parts = [*self.path.partition("?")[0].split("/"), "", ""]
                return parts[1:3]

            def log_message(self, format: str, *args: object) -> None:
                """Do not log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Backend:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class Client:
    """One connection to a waypoint's listener, which starts with a PROXY header."""

    def __init__(
        self, port: int, tlvs: tuple[tuple[int, bytes], ...] = (), destination: str = "10.96.0.1:80"
    ) -> None:
        ip, _, number = destination.rpartition(":")
        header = encode_proxy_header(CLIENT, SocketAddress(ip, int(number)), tlvs)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._connection.connect()
        self._connection.sock.sendall(header)

    def get(
        self,
        path: str = "/",
        headers: dict[str, str] | None = None,
        method: str = "GET",
        body: bytes | None = None,
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers (lower case) and body of a response."""
        self._connection.request(method, path, body=body, headers=headers or {})
        response = self._connection.getresponse()
        text = response.read().decode()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, text

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
