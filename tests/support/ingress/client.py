# SPDX-License-Identifier: Apache-2.0
"""A client outside of the mesh."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping

from tests.support.waypoint.client import TIMEOUT_S, Answer


def fetch(
    port: int,
    host: str,
    path: str = "/",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    *,
    body: bytes | None = None,
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
    before: bytes = b"",
    address: str = "127.0.0.1",
) -> Answer:
    """Send one HTTP/1.1 request to 127.0.0.1 on a connection of its own.

    `tls`: over TLS, with SNI `server_name` (default: the host). `before`: bytes that precede all
    others, for example a PROXY header.
    """
    connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_S)
    sock = socket.create_connection((address, port), TIMEOUT_S)
    sock.sendall(before)
    if tls is not None:
        sock = tls.wrap_socket(sock, server_hostname=server_name or host.partition(":")[0])
    connection.sock = sock
    try:
        connection.request(method, path, body, {"host": host, **(headers or {})})
        response = connection.getresponse()
        content = response.read()
        found = {key.lower(): value for key, value in response.getheaders()}
        return Answer(response.status, found, content, _received(content))
    finally:
        connection.close()


def _received(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and "backend" in value else {}
