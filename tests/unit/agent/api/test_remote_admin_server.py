# SPDX-License-Identifier: Apache-2.0
"""The admin API's port of loopback, as a stranger on the node meets it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ztunnel.agent.api import remote_admin_server
from ztunnel.agent.api.remote_admin_server import AnnotationStore, Door
from ztunnel.kube.admin_endpoint import MAX_TOKEN_BYTES, AdminEndpoint, parse

GOOD = "a-good-token"
DEADLINE = 20.0  # seconds

pytestmark = pytest.mark.timeout(DEADLINE)


class World:
    """An admin socket that answers in capitals, a door before it, and who was reviewed."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "admin.sock"
        self.reviewed: list[tuple[str, str]] = []
        self.reached = 0
        self.door = Door(self.path, self._refusal)

    def _refusal(self, token: str, audience: str) -> str:
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
        return await asyncio.open_connection("127.0.0.1", self.door.doorway.port, ssl=context)

    async def plain(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.door.doorway.port)


@pytest.fixture
async def world(tmp_path: Path, _soon: None) -> AsyncIterator[World]:
    made = World(tmp_path)
    admin = await asyncio.start_unix_server(made.answer, str(made.path))
    serving = asyncio.create_task(made.door.serve())
    yield made
    serving.cancel()
    await made.door.close()
    admin.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_admin_server, "PROOF_TIME", 0.3)
    monkeypatch.setattr(remote_admin_server, "PENALTY", 0.1)


async def _enter(world: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await world.dial()
    writer.write(GOOD.encode() + b"\n")
    assert await reader.readline() == b"ok\n"
    return reader, writer


async def test_good_token_leads_to_the_admin_socket(world: World) -> None:
    reader, writer = await _enter(world)
    assert world.reviewed == [(GOOD, world.door.doorway.audience)]
    sent = b"abc" * 300_000
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent.upper()
    writer.close()


async def test_what_is_said_before_the_answer_goes_on_only_if_it_is_ok(world: World) -> None:
    for token, answer in ((GOOD, b"ok\nHELLO"), ("stolen", b"no: not you\n")):
        reader, writer = await world.dial()
        writer.write(token.encode() + b"\nhello")
        assert await reader.readexactly(len(answer)) == answer
        if token != GOOD:
            assert await reader.read() == b""
        writer.close()
    assert world.reached == 1


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b"\0" * 4096],
    ids=["nothing", "http", "half a hello", "zeros"],
)
async def test_who_speaks_no_tls_is_closed_soon(world: World, said: bytes) -> None:
    reader, writer = await world.plain()
    writer.write(said)
    with contextlib.suppress(ConnectionResetError):
        await reader.read()
    assert world.reviewed == []


@pytest.mark.parametrize("said", [b"", b"\n", b"no line's end", b"x" * (2 * MAX_TOKEN_BYTES)])
async def test_who_brings_no_token_is_closed_and_nobody_is_asked(world: World, said: bytes) -> None:
    reader, writer = await world.dial()
    writer.write(said)
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        assert await reader.read() == b""
    assert (world.reviewed, world.reached) == ([], 0)


async def test_token_of_any_bytes_is_just_a_bad_one(world: World) -> None:
    reader, writer = await world.dial()
    writer.write(bytes(range(128, 256)) + b"\0\n")
    assert await reader.readline() == b"no: not you\n"


async def test_strangers_that_take_all_places_give_them_back(world: World) -> None:
    strangers = [await world.plain() for _ in range(remote_admin_server.WAYS + 4)]
    reader, writer = await _enter(world)
    writer.write(b"still here")
    assert await reader.readexactly(10) == b"STILL HERE"
    assert len(world.door._talks) <= remote_admin_server.WAYS
    for _, one in strangers:
        one.close()


async def test_refused_tokens_are_reviewed_no_faster_than_places_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_admin_server, "PENALTY", DEADLINE)  # so: never, here

    async def guess() -> None:
        reader, writer = await world.dial()
        writer.write(b"guess\n")
        assert await reader.readline() == b"no: not you\n"

    guesses = [asyncio.create_task(guess()) for _ in range(2 * remote_admin_server.WAYS)]
    while len(world.reviewed) < remote_admin_server.WAYS:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert len(world.reviewed) == remote_admin_server.WAYS
    for each in guesses:
        each.cancel()


async def test_connection_ends_with_its_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_admin_server, "LIFE", 0.5)

    reader, _ = await _enter(world)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""


async def test_only_loopback_listens(world: World) -> None:
    assert world.door._listener.getsockname()[0] == "127.0.0.1"
    assert world.door._listener.family == socket.AF_INET


async def test_pods_annotation_is_written_again_when_somebody_changed_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_admin_server, "AGAIN", 0.01)
    note, fails, written = {"text": "old"}, [True], []

    def say(text: str) -> None:
        if fails and fails.pop():
            raise OSError("server away")
        written.append(text)
        note["text"] = text

    announcing = asyncio.create_task(
        world.door.announce(AnnotationStore(lambda: note["text"], say))
    )
    for _ in range(2):
        while parse(note["text"]) != world.door.doorway:
            await asyncio.sleep(0.01)
        note["text"] = "removed"
    announcing.cancel()
    assert written == [str(world.door.doorway)] * 2


def test_each_agent_has_a_key_of_its_own(tmp_path: Path) -> None:
    one, two = World(tmp_path).door, World(tmp_path).door
    assert one.doorway.audience != two.doorway.audience
    for door in (one, two):
        door._listener.close()


@pytest.mark.parametrize("text", ["", "1", "0 sha256:" + "a" * 64, "1 sha256:" + "A" * 64])
def test_annotation_that_is_none_is_not_taken(text: str) -> None:
    assert parse(text) is None
    assert parse(str(AdminEndpoint(1, "a" * 64))) == AdminEndpoint(1, "a" * 64)
