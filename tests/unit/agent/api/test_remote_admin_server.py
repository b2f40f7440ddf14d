# SPDX-License-Identifier: Apache-2.0
"""The loopback port of the admin API and unauthenticated clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ztunnel.agent.api import remote_admin_server
from ztunnel.agent.api.remote_admin_server import AdminTlsServer, AnnotationStore
from ztunnel.kube.admin_endpoint import MAX_TOKEN_BYTES, AdminEndpoint, parse

GOOD = "a-good-token"
DEADLINE = 20.0  # seconds

pytestmark = pytest.mark.timeout(DEADLINE)


class World:
    """An admin socket that replies in capitals, the server before it, and the reviewed tokens."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "admin.sock"
        self.reviewed: list[tuple[str, str]] = []
        self.reached = 0
        self.server = AdminTlsServer(self.path, self._review)

    def _review(self, token: str, audience: str) -> str:
        self.reviewed.append((token, audience))
        return "" if token == GOOD else "not you"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reached += 1
        while data := await reader.read(1 << 16):
            writer.write(data.upper())
        writer.close()

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return await asyncio.open_connection("127.0.0.1", self.server.endpoint.port, ssl=context)

    async def plain(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.server.endpoint.port)


@pytest.fixture
async def world(tmp_path: Path, _soon: None) -> AsyncIterator[World]:
    made = World(tmp_path)
    admin = await asyncio.start_unix_server(made.answer, str(made.path))
    serving = asyncio.create_task(made.server.serve())
    yield made
    serving.cancel()
    await made.server.close()
    admin.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_admin_server, "AUTH_TIMEOUT_S", 0.3)
    monkeypatch.setattr(remote_admin_server, "REJECTION_DELAY_S", 0.1)


async def _enter(world: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await world.dial()
    writer.write(GOOD.encode() + b"\n")
    assert await reader.readline() == b"ok\n"
    return reader, writer


async def test_valid_token_connects_to_the_admin_socket(world: World) -> None:
    reader, writer = await _enter(world)
    assert world.reviewed == [(GOOD, world.server.endpoint.audience)]
    sent = b"abc" * 300_000
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent.upper()
    writer.close()


async def test_early_data_is_relayed_only_after_authentication(world: World) -> None:
    for token, answer in ((GOOD, b"ok\nHELLO"), ("stolen", b"no: not you\n")):
        reader, writer = await world.dial()
        writer.write(token.encode() + b"\nhello")
        assert await reader.readexactly(len(answer)) == answer
        if token != GOOD:
            assert await reader.read() == b""
        writer.close()
    assert world.reached == 1


@pytest.mark.parametrize(
    "data",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b"\0" * 4096],
    ids=["nothing", "http", "half a hello", "zeros"],
)
async def test_connection_without_tls_is_closed(world: World, data: bytes) -> None:
    reader, writer = await world.plain()
    writer.write(data)
    with contextlib.suppress(ConnectionResetError):
        await reader.read()
    assert world.reviewed == []


@pytest.mark.parametrize("data", [b"", b"\n", b"no line's end", b"x" * (2 * MAX_TOKEN_BYTES)])
async def test_connection_without_token_is_closed_without_review(world: World, data: bytes) -> None:
    reader, writer = await world.dial()
    writer.write(data)
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        assert await reader.read() == b""
    assert (world.reviewed, world.reached) == ([], 0)


async def test_token_of_arbitrary_bytes_is_rejected(world: World) -> None:
    reader, writer = await world.dial()
    writer.write(bytes(range(128, 256)) + b"\0\n")
    assert await reader.readline() == b"no: not you\n"


async def test_unauthenticated_clients_do_not_occupy_slots_forever(world: World) -> None:
    clients = [await world.plain() for _ in range(remote_admin_server.MAX_CONNECTIONS + 4)]
    reader, writer = await _enter(world)
    writer.write(b"still here")
    assert await reader.readexactly(10) == b"STILL HERE"
    assert len(world.server._connections) <= remote_admin_server.MAX_CONNECTIONS
    for _, one in clients:
        one.close()


async def test_rejected_tokens_limit_the_rate_of_reviews(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_admin_server, "REJECTION_DELAY_S", DEADLINE)  # longer than the test

    async def guess() -> None:
        reader, writer = await world.dial()
        writer.write(b"guess\n")
        assert await reader.readline() == b"no: not you\n"

    guesses = [asyncio.create_task(guess()) for _ in range(2 * remote_admin_server.MAX_CONNECTIONS)]
    while len(world.reviewed) < remote_admin_server.MAX_CONNECTIONS:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert len(world.reviewed) == remote_admin_server.MAX_CONNECTIONS
    for each in guesses:
        each.cancel()


async def test_connection_is_closed_after_max_duration(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_admin_server, "MAX_DURATION_S", 0.5)

    reader, _ = await _enter(world)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""


async def test_server_listens_on_loopback_only(world: World) -> None:
    assert world.server._listener.getsockname()[0] == "127.0.0.1"
    assert world.server._listener.family == socket.AF_INET


async def test_changed_annotation_is_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_admin_server, "ANNOTATION_INTERVAL_S", 0.01)
    note, fails, written = {"text": "old"}, [True], []

    def write(text: str) -> None:
        if fails and fails.pop():
            raise OSError("server away")
        written.append(text)
        note["text"] = text

    announcing = asyncio.create_task(
        world.server.announce(AnnotationStore(lambda: note["text"], write))
    )
    for _ in range(2):
        while parse(note["text"]) != world.server.endpoint:
            await asyncio.sleep(0.01)
        note["text"] = "removed"
    announcing.cancel()
    assert written == [str(world.server.endpoint)] * 2


def test_each_agent_has_its_own_key(tmp_path: Path) -> None:
    one, two = World(tmp_path).server, World(tmp_path).server
    assert one.endpoint.audience != two.endpoint.audience
    for server in (one, two):
        server._listener.close()


@pytest.mark.parametrize("text", ["", "1", "0 sha256:" + "a" * 64, "1 sha256:" + "A" * 64])
def test_invalid_annotation_is_not_parsed(text: str) -> None:
    assert parse(text) is None
    assert parse(str(AdminEndpoint(1, "a" * 64))) == AdminEndpoint(1, "a" * 64)
