# SPDX-License-Identifier: Apache-2.0
"""The gRPC server of the xDS streams, with the HTTP/2 library's own client."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events

from ztunnel.gateway.xds.grpc_server import WINDOW_BYTES, GrpcConnection

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
REQUEST_BYTES = 200


class Wire(asyncio.Transport):
    """A transport that collects what the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False


class Echo:
    """Answers each message with itself."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def receive(self, message: bytes) -> None:
        self._send(message)

    def closed(self) -> None:
        pass


class Client:
    """One stream to a server."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.server = GrpcConnection(METHOD, Echo)
        self.server.connection_made(self.wire)
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._http.initiate_connection()
        self.received = bytearray()
        headers = {":method": "POST", ":path": METHOD, ":scheme": "http", ":authority": "xds"}
        self._http.send_headers(1, [*headers.items(), ("content-type", "application/grpc")])
        self.exchange()

    @property
    def window(self) -> int:
        """What the client may send, in bytes."""
        return self._http.local_flow_control_window(1)

    def send(self, message: bytes) -> None:
        """Send a message."""
        self._http.send_data(1, struct.pack(">BI", 0, len(message)) + message)
        self.exchange()

    def exchange(self) -> None:
        """Deliver what both sides have written, until there is nothing more."""
        while data := self._http.data_to_send():
            self.server.data_received(data)
            for event in self._http.receive_data(bytes(self.wire.written)):
                if isinstance(event, h2.events.DataReceived):
                    self.received += event.data or b""
                    self._http.acknowledge_received_data(event.flow_controlled_length or 0, 1)
            self.wire.written.clear()


def test_client_may_send_a_whole_window_from_the_start() -> None:
    client = Client()
    client.exchange()
    assert client.window == WINDOW_BYTES


def test_stream_never_runs_out_of_window() -> None:
    client = Client()
    message = bytes(REQUEST_BYTES)
    for _ in range(2 * WINDOW_BYTES // REQUEST_BYTES):
        client.send(message)
    assert client.window > WINDOW_BYTES // 4
    assert len(client.received) == 2 * WINDOW_BYTES // REQUEST_BYTES * (5 + REQUEST_BYTES)
