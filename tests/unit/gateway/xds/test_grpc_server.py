# SPDX-License-Identifier: Apache-2.0
"""The gRPC server against an independent client (grpc.aio), and against hostile bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.events
import pytest

from tests.support.waiting import wait_until_async
from ztunnel.gateway.xds import grpc_server
from ztunnel.gateway.xds.grpc_server import GrpcConnection

METHOD = "/test.Service/Exchange"


class Echo:
    """Sends each message back; `multiply` makes the answer larger."""

    def __init__(self, send: Callable[[bytes], None], log: list[str]) -> None:
        self._send = send
        self._log = log
        log.append("open")

    def receive(self, message: bytes) -> None:
        if message == b"bad":
            raise ValueError("bad message")
        if message == b"defect":
            raise RuntimeError("defect")
        self._send(message * 40 if message.startswith(b"large") else message)

    def closed(self) -> None:
        self._log.append("closed")


class Server:
    def __init__(self, port: int, log: list[str]) -> None:
        self.port, self.log = port, log

    @contextlib.asynccontextmanager
    async def exchange(self, method: str = METHOD) -> AsyncIterator[grpc.aio.StreamStreamCall]:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options) as channel:
            yield channel.stream_stream(method)()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    log: list[str] = []
    sock = socket.create_server(("127.0.0.1", 0))
    running = await asyncio.get_running_loop().create_server(
        lambda: GrpcConnection(METHOD, lambda send: Echo(send, log)), sock=sock
    )
    yield Server(sock.getsockname()[1], log)
    running.close()


async def test_messages_go_both_ways(server: Server) -> None:
    async with server.exchange() as call:
        for text in (b"", b"hello", b"x" * 100_000):
            await call.write(text)
            assert await call.read() == text
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    await wait_until_async(lambda: server.log == ["open", "closed"], lambda: server.log)


async def test_messages_larger_than_the_flow_control_windows(server: Server) -> None:
    async with server.exchange() as call:
        text = b"large" + b"x" * 600_000
        for _ in range(3):
            await call.write(text)
            assert await call.read() == text * 40


async def test_many_messages_use_the_whole_window_again(server: Server) -> None:
    """Envoy's first request has 60 KB: as much as the default window."""
    async with server.exchange() as call:
        for _ in range(40):
            await call.write(b"y" * 60_000)
            assert await call.read() == b"y" * 60_000


async def test_unknown_method_is_unimplemented(server: Server) -> None:
    async with server.exchange("/test.Service/Other") as call:
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert server.log == []


@pytest.mark.parametrize(
    ("message", "code"),
    [(b"bad", grpc.StatusCode.RESOURCE_EXHAUSTED), (b"defect", grpc.StatusCode.INTERNAL)],
)
async def test_failure_of_the_application_ends_the_stream(
    server: Server, message: bytes, code: grpc.StatusCode
) -> None:
    async with server.exchange() as call:
        await call.write(message)
        assert await call.code() is code
    assert server.log == ["open", "closed"]


async def test_client_that_disconnects_closes_its_streams(server: Server) -> None:
    async with server.exchange() as call:
        await call.write(b"hello")
        assert await call.read() == b"hello"
    await wait_until_async(lambda: server.log == ["open", "closed"], lambda: server.log)


async def _raw(server: Server, data: bytes) -> bytes:
    """Send bytes after a valid preface; returns what the server sent until it closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    writer.write(client.data_to_send() + data)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        received = await asyncio.wait_for(reader.read(-1), 5)
    writer.close()
    return received


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * (8 * grpc_server.MAX_INCOMPLETE_BYTES),  # a frame of 16 MB
        b"\x00\x40\x01\x00\x00\x00\x00\x00\x01" + b"x" * 16385,  # a frame beyond the limit
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # WINDOW_UPDATE by 0
    ],
    ids=["incomplete", "too long", "window update"],
)
async def test_invalid_frames_end_the_connection_only(server: Server, data: bytes) -> None:
    await _raw(server, data)
    await test_messages_go_both_ways(server)


async def test_message_longer_than_the_limit_ends_the_stream(server: Server) -> None:
    async with server.exchange() as call:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(b"x" * (grpc_server.MAX_MESSAGE_BYTES + 1))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_number_of_streams_is_bounded(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", METHOD),
        (":authority", "x"),
        ("content-type", "application/grpc"),
    ]
    for number in range(grpc_server.MAX_STREAMS + 1):
        client.send_headers(1 + 2 * number, headers)
    writer.write(client.data_to_send())
    await asyncio.wait_for(reader.read(-1), 5)  # until the server closes the connection
    await wait_until_async(
        lambda: server.log.count("open") == server.log.count("closed"), lambda: server.log
    )
    assert server.log.count("open") <= grpc_server.MAX_STREAMS
    writer.close()
