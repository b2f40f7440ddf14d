# SPDX-License-Identifier: Apache-2.0
"""An HTTP/2 client with prior knowledge on a connection to a waypoint, and gRPC's framing."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived


@dataclass
class H2Answer:
    """A response with its trailers; `reset`: the stream was reset instead."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reset: bool = False

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.headers.get(":status", "0"))

    @property
    def grpc_status(self) -> int:
        """The status of gRPC, -1 if there is none."""
        return int(self.headers.get("grpc-status", "-1"))

    @property
    def message(self) -> bytes:
        """The first message of gRPC."""
        return self.body[5:]


class H2Client:
    """Sends requests one after another on one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        config = H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = H2Connection(config)
        self._h2.initiate_connection()
        self._flush()

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> H2Answer:
        """Send a request and wait for the end of its response.

        `headers` may replace pseudo headers.
        """
        stream = self._h2.get_next_available_stream_id()
        fixed = {":method": method, ":path": path, ":scheme": "http", ":authority": "web"}
        self._h2.send_headers(stream, list({**fixed, **(headers or {})}.items()), not body)
        if body:
            self._h2.send_data(stream, body, end_stream=True)
        self._flush()
        answer = H2Answer()
        while not self._receive(answer, stream):
            self._flush()
        return answer

    def call(self, method: str, message: bytes = b"", **headers: str) -> H2Answer:
        """Call a unary method of gRPC, `/<service>/<method>`."""
        frame = b"\0" + len(message).to_bytes(4, "big") + message
        fixed = {"content-type": "application/grpc", "te": "trailers"}
        return self.request("POST", method, {**fixed, **headers}, frame)

    def _receive(self, answer: H2Answer, stream: int) -> bool:
        data = self._sock.recv(65536)
        if not data:
            raise ConnectionResetError("the connection was closed")
        done = False
        for event in self._h2.receive_data(data):
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, ResponseReceived | TrailersReceived):
                answer.headers |= {str(k): str(v) for k, v in event.headers or ()}
            elif isinstance(event, DataReceived):
                answer.body += event.data or b""
            elif isinstance(event, StreamReset):
                answer.reset = True
            done |= isinstance(event, StreamEnded | StreamReset)
        self._flush()
        return done

    def _flush(self) -> None:
        self._sock.sendall(self._h2.data_to_send())
