# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 server that describes each request in its response. Runs in a pod.

usage: http_server.py VERSION

Serves port 8000 on both families. The body is JSON: version, pod, method, path, headers (names in
lower case) and the client's address. `?delay=S` delays the response by S seconds; `?status=N` sets
the status code.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from urllib.parse import parse_qs, urlsplit

PORT = 8000
MAX_HEAD_BYTES = 64 * 1024


async def serve(version: str) -> None:
    listener = socket.create_server(
        ("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    )

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await respond(version, reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, sock=listener, limit=MAX_HEAD_BYTES)
    await server.serve_forever()


async def respond(version: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Serve one request; whether another one may follow on the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    headers = {}
    for line in filter(None, head[1:]):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    await reader.readexactly(int(headers.get("content-length", 0)))
    query = parse_qs(urlsplit(target).query)
    if delay := query.get("delay"):
        await asyncio.sleep(float(delay[0]))
    body = json.dumps(
        {
            "version": version,
            "pod": os.environ.get("HOSTNAME", ""),
            "method": method,
            "path": target,
            "headers": headers,
            "client": writer.get_extra_info("peername")[0],
        }
    ).encode()
    status = query.get("status", ["200"])[0]
    answer = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
    answer += f"content-length: {len(body)}\r\nx-version: {version}\r\n\r\n"
    writer.write(answer.encode() + (b"" if method == "HEAD" else body))
    await writer.drain()
    return headers.get("connection", "").lower() != "close"


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
