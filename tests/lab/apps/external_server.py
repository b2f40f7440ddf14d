# SPDX-License-Identifier: Apache-2.0
"""A server outside the cluster. Runs on the lab's external machine.

usage: external_server.py CERTIFICATE

    80, 8080   HTTP   the response is JSON: client address, method, path, host, TLS server name
    443  HTTPS  the same; CERTIFICATE has certificate and key
    9000, 9100 TCP    reads a line, sends one with the client's address, and closes

The client of every connection is printed, one per line.
"""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import ssl
import sys
import threading
from typing import Any


class DualStackServer(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class LineServer(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


def address(client: tuple[Any, ...]) -> str:
    """The client's address, and a line on standard output."""
    found = str(client[0]).removeprefix("::ffff:")
    print(found, flush=True)
    return found


class Requests(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps(
            {
                "client": address(self.client_address),
                "method": self.command,
                "path": self.path,
                "host": self.headers.get("host", ""),
                "server_name": getattr(self.connection, "requested_name", ""),
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.do_GET
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:
        """Only the clients are printed."""


class Line(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        if self.rfile.readline():
            self.wfile.write(f"{address(self.client_address)}\n".encode())


def main(certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda sock, name, _: setattr(sock, "requested_name", name or "")
    plain, secure = DualStackServer(("::", 80), Requests), DualStackServer(("::", 443), Requests)
    other = DualStackServer(("::", 8080), Requests)
    secure.socket = context.wrap_socket(
        secure.socket, server_side=True, do_handshake_on_connect=False
    )
    lines = [LineServer(("::", port), Line) for port in (9000, 9100)]
    for server in (plain, secure, other, *lines):
        threading.Thread(target=server.serve_forever).start()
    print("started", flush=True)


main(sys.argv[1])
