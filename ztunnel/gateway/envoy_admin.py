# SPDX-License-Identifier: Apache-2.0
"""Requests to the admin interface of the Envoy in a gateway pod, over sockets from the agent.

The agent connects the sockets: this process cannot choose what they reach.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

TIMEOUT_S = 8.0
MAX_BODY_BYTES = 60 << 20
MAX_HEADER_BYTES = 16 << 10
MAX_WAITING = 16  # requests that wait for a socket


class EnvoyAdminError(Exception):
    """The request failed; the text states why."""


class EnvoyAdmin:
    """One per gateway pod. `request_socket` asks the agent for a socket in the pod."""

    def __init__(self, request_socket: Callable[[], None]) -> None:
        self._request_socket = request_socket
        self._waiting: list[asyncio.Future[socket.socket]] = []

    def offer(self, sock: socket.socket) -> None:
        """A socket from the agent, which connects it to Envoy's admin port. Not blocking."""
        while self._waiting:
            waiter = self._waiting.pop(0)
            if not waiter.done():
                waiter.set_result(sock)
                return
        sock.close()

    def close(self) -> None:
        """The pod is gone: fail all requests."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(EnvoyAdminError("the pod is gone"))
        self._waiting.clear()

    async def get(self, path: str, *, method: str = "GET") -> bytes:
        """The body of a response with status 200. Raises EnvoyAdminError."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._exchange(path, method)
        except TimeoutError:
            raise EnvoyAdminError(f"Envoy did not answer within {TIMEOUT_S:.0f} s") from None
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise EnvoyAdminError(f"Envoy's admin interface: {error}") from error

    async def _exchange(self, path: str, method: str) -> bytes:
        sock = await self._socket()
        try:
            reader, writer = await asyncio.open_connection(sock=sock, limit=MAX_HEADER_BYTES)
        except BaseException:
            sock.close()
            raise
        try:
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            status, headers = await _head(reader)
            body = await _body(reader, headers)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        if status != 200:
            raise EnvoyAdminError(f"Envoy answered {status}: {body[:200].decode('latin-1')}")
        return body

    async def _socket(self) -> socket.socket:
        if len(self._waiting) >= MAX_WAITING:
            raise EnvoyAdminError("too many requests wait for a socket in the pod")
        waiter: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._request_socket()
        try:
            return await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers. Raises ValueError."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError as error:
        raise ValueError("headers too large") from error
    first, *lines = text.split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ValueError(f"not an HTTP response: {first[:80]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(words[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """Raises ValueError, IncompleteReadError."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        length = headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise ValueError(f"a body of {length!r} bytes")
        return await reader.readexactly(int(length))
    body = bytearray()
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        if size < 0 or len(body) + size > MAX_BODY_BYTES:
            raise ValueError(f"a body of more than {MAX_BODY_BYTES} bytes")
        body += await reader.readexactly(size)
        await reader.readline()
        if not size:
            return bytes(body)
