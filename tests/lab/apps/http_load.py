# SPDX-License-Identifier: Apache-2.0
"""Send HTTP requests at a fixed rate until stdin ends. Runs in a pod.

usage: http_load.py [--new] [--host NAME] [--ca FILE] ADDRESS PORT RATE [HEADER:VALUE ...]

Requests start on schedule whatever the earlier ones do (open loop), on kept-alive connections; with
--new, each has a connection of its own. As in Go's net/http, a request on a reused connection that
the server closed without any response is sent again; `retried` counts these. With --ca, over TLS:
the server must prove the name with a certificate of this authority.

Prints "started", and at the end a JSON object: `requests`, a list of [start, end, status, version],
with times in seconds since the epoch; `retried`; and `drained`, how many kept-alive connections the
server asked to close. The status of a failed request is 0, and its
error is in the place of the version.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time

TIMEOUT_S = 10.0  # seconds for one request
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NoResponseError(ConnectionError):
    """The connection ended without a byte of the response."""


class Client:
    """Sends requests to one address, on a pool of idle connections."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.requests: list[tuple[float, float, int, str]] = []
        self.retried = 0
        self.drained = 0
        self._address = (options.address, options.port)
        self._new = options.new
        self._idle: list[Connection] = []
        self._tls = (
            {"ssl": ssl.create_default_context(cafile=options.ca), "server_hostname": options.host}
            if options.ca
            else {}
        )
        close = ["connection: close"] if options.new else []
        head = ["GET / HTTP/1.1", f"host: {options.host}", *options.headers, *close]
        self._request = ("\r\n".join(head) + "\r\n\r\n").encode()

    async def send(self) -> None:
        """Send one request and record its result."""
        began = time.time()
        try:
            status, version = await asyncio.wait_for(self._send(), TIMEOUT_S)
        except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            status, version = 0, f"{type(error).__name__}: {error}"
        self.requests.append((began, time.time(), status, version))

    async def _send(self) -> tuple[int, str]:
        while self._idle:
            reader, writer = self._idle.pop()
            if reader.at_eof() or writer.is_closing():
                writer.close()
                continue
            try:
                return await self._exchange(reader, writer)
            except (NoResponseError, ConnectionResetError, BrokenPipeError):
                self.retried += 1
        return await self._exchange(*await asyncio.open_connection(*self._address, **self._tls))

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, str]:
        keep = False
        try:
            writer.write(self._request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    raise
                raise NoResponseError("closed before a response") from error
            lines = head.decode("latin-1").lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            await reader.readexactly(int(fields.get("content-length", 0)))
            close = fields.get("connection") == "close"
            self.drained += close and not self._new
            keep = not self._new and not close
            if keep:
                self._idle.append((reader, writer))
            return int(lines[0].split(" ")[1]), fields.get("x-version", "")
        finally:
            if not keep:
                writer.close()


async def main(options: argparse.Namespace) -> None:
    client, running = Client(options), set()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print("started", flush=True)
    due = time.monotonic()
    while not ended.done():
        task = asyncio.create_task(client.send())
        running.add(task)
        task.add_done_callback(running.discard)
        due += 1 / options.rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*running)
    print(
        json.dumps({name: getattr(client, name) for name in ("requests", "retried", "drained")}),
        flush=True,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("headers", nargs="*")
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--host", default="my-app")
    parser.add_argument("--ca")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
