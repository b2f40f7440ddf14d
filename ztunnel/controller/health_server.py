# SPDX-License-Identifier: Apache-2.0
"""HTTP endpoints for the kubelet's probes: GET /healthz/live, GET /healthz/ready.

Every pod can reach the port: `ConnectionShares` decides which connections stay open, and a request
has a limit of time and size.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus

from ztunnel.ipc.connection_shares import ConnectionShares

REQUEST_TIMEOUT_S = 2.0  # a kubelet waits for one second by default
MAX_REQUEST_BYTES = 4096
MAX_CONNECTIONS = 64
MAX_CONNECTIONS_PER_SOURCE = 4  # a kubelet has two probes


class HealthServer:
    """Serves, in a thread, while the context is entered. Port 0: any free port; None: no server."""

    def __init__(
        self, port: int | None, is_ready: Callable[[], bool], node_addresses: Iterable[str] = ()
    ) -> None:
        """Connections from `node_addresses`, the kubelet's, have precedence."""
        self._port = port
        self._is_ready = is_ready
        self._open: ConnectionShares[asyncio.StreamWriter] = ConnectionShares(
            MAX_CONNECTIONS, MAX_CONNECTIONS_PER_SOURCE, node_addresses
        )
        self._sock: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def __enter__(self) -> HealthServer:
        """Listen. Raises OSError."""
        if self._port is not None:
            family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
            self._sock = socket.create_server(
                ("", self._port), family=family, dualstack_ipv6=family == socket.AF_INET6
            )
            self._loop.run_until_complete(
                asyncio.start_server(self._serve, sock=self._sock, limit=MAX_REQUEST_BYTES)
            )
            self._thread.start()
        return self

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._sock is not None
        port: int = self._sock.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        if self._sock is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._sock.close()
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_other_tasks())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername") or ("",)  # None: it has disconnected
        evicted = self._open.add(writer, peer[0])
        if evicted is not None:
            evicted.transport.abort()
        try:
            with suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    request = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._response(request))
                    await writer.drain()
        finally:
            self._open.remove(writer)
            writer.close()

    def _response(self, request: bytes) -> bytes:
        """The response to a request, of which only the request line counts."""
        words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or words[0] != "GET":
            return _response(HTTPStatus.BAD_REQUEST, "only GET")
        if words[1] == "/healthz/live":
            return _response(HTTPStatus.OK, "live")
        if words[1] != "/healthz/ready":
            return _response(HTTPStatus.NOT_FOUND, "not found")
        if self._is_ready():
            return _response(HTTPStatus.OK, "ready")
        return _response(HTTPStatus.SERVICE_UNAVAILABLE, "API server not reachable")


async def _cancel_other_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _response(status: HTTPStatus, text: str) -> bytes:
    body = f"{text}\n"
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()
