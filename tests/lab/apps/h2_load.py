# SPDX-License-Identifier: Apache-2.0
"""Send HTTP/2 requests over TLS at a fixed rate until stdin ends. Runs outside the cluster.

usage: h2_load.py --host NAME --ca FILE [--connections N] ADDRESS PORT RATE

The requests take turns on N connections. A connection that the server ends with GOAWAY gets no more
requests; another one replaces it. No request is sent twice: one that the server has not processed
counts as failed. The output is that of http_load.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError

TIMEOUT_S = 10.0  # seconds for one request
RECEIVE_BYTES = 65536
HEADER_BYTES, GOAWAY = 9, 7  # of a frame; its type (RFC 9113)


class Connection:
    """One connection. `draining`: it gets no more requests. `drained`: because of GOAWAY."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.draining = self.drained = False
        self._options = options
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._pending = b""  # the begin of a frame
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._status: dict[int, tuple[int, str]] = {}

    async def open(self) -> None:
        """Connect; the server must select HTTP/2."""
        context = ssl.create_default_context(cafile=self._options.ca)
        context.set_alpn_protocols(["h2"])
        self._reader, self._writer = await asyncio.open_connection(
            self._options.address,
            self._options.port,
            ssl=context,
            server_hostname=self._options.host,
        )
        selected = self._writer.get_extra_info("ssl_object").selected_alpn_protocol()
        if selected != "h2":
            raise ConnectionError(f"the server selected {selected}")
        self._h2.initiate_connection()
        self._flush()
        self._task = asyncio.create_task(self._receive())

    async def get(self) -> tuple[int, str]:
        """Send a request; the status and the version of the response."""
        stream = self._h2.get_next_available_stream_id()
        head = {
            ":method": "GET",
            ":path": "/",
            ":scheme": "https",
            ":authority": self._options.host,
        }
        self._h2.send_headers(stream, list(head.items()), end_stream=True)
        done = self._waiting[stream] = asyncio.get_running_loop().create_future()
        self._flush()
        await done
        return self._status.pop(stream)

    async def _receive(self) -> None:
        error = ConnectionResetError("the server closed the connection")
        try:
            while data := await self._reader.read(RECEIVE_BYTES):
                for event in self._h2.receive_data(self._without_goaway(data)):
                    self._handle(event)
                self._flush()
                if self.draining and not self._waiting:
                    break
        except (OSError, ProtocolError) as failure:
            error = ConnectionResetError(str(failure))
        self.draining = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)
        self._writer.close()

    def _without_goaway(self, data: bytes) -> bytes:
        """Complete frames but GOAWAY, which is handled here: h2 would refuse those after it."""
        self._pending += data
        passed = b""
        while len(self._pending) >= HEADER_BYTES:
            end = HEADER_BYTES + int.from_bytes(self._pending[:3], "big")
            if len(self._pending) < end:
                break
            frame, self._pending = self._pending[:end], self._pending[end:]
            if frame[3] != GOAWAY:
                passed += frame
                continue
            self.draining = self.drained = True
            last = int.from_bytes(frame[HEADER_BYTES : HEADER_BYTES + 4], "big")
            for stream in [each for each in self._waiting if each > last]:
                self._fail(stream, "not processed: GOAWAY")
        return passed

    def _handle(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            fields = {str(name): str(value) for name, value in event.headers}
            self._status[event.stream_id] = int(fields[":status"]), fields.get("x-version", "")
        elif isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            done = self._waiting.pop(event.stream_id)
            if not done.done():
                done.set_result(None)
        elif isinstance(event, StreamReset):
            self._fail(event.stream_id, f"reset: error code {event.error_code}")

    def _fail(self, stream: int, why: str) -> None:
        waiting = self._waiting.pop(stream, None)
        if waiting is not None and not waiting.done():
            waiting.set_exception(ConnectionError(why))

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())


class Client:
    """Sends requests in turns on several connections."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.requests: list[tuple[float, float, int, str]] = []
        self.drained = 0
        self._options = options
        self._connections: list[Connection | None] = [None] * options.connections
        self._locks = [asyncio.Lock() for _ in self._connections]

    async def send(self, number: int) -> None:
        """Send one request and record its result."""
        began = time.time()
        try:
            status, version = await asyncio.wait_for(self._send(number), TIMEOUT_S)
        except (TimeoutError, OSError, ValueError) as error:
            status, version = 0, f"{type(error).__name__}: {error}"
        self.requests.append((began, time.time(), status, version))

    async def _send(self, number: int) -> tuple[int, str]:
        slot = number % len(self._connections)
        async with self._locks[slot]:
            found = self._connections[slot]
            if found is None or found.draining:
                self.drained += found is not None and found.drained
                found = Connection(self._options)
                await found.open()
                self._connections[slot] = found
        return await found.get()


async def main(options: argparse.Namespace) -> None:
    client, running = Client(options), set()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print("started", flush=True)
    due, number = time.monotonic(), 0
    while not ended.done():
        task = asyncio.create_task(client.send(number))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1
        due += 1 / options.rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*running)
    found = {"requests": client.requests, "retried": 0, "drained": client.drained}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--connections", type=int, default=4)
    asyncio.run(main(parser.parse_args()))
