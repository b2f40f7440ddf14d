# SPDX-License-Identifier: Apache-2.0
"""Memory of counts: what is written is read, what was told is not, and lies do no harm."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator

import pytest

from ztunnel.ipc.messages import Count
from ztunnel.telemetry.counter_memory import MOST_ROWS, CheckpointError, Reader, Writer


@pytest.fixture
def pair() -> Iterator[tuple[Writer, Reader]]:
    writer = Writer()
    reader = Reader(writer.fd)
    yield writer, reader
    reader.close()
    writer.close()


def test_rows_are_as_they_were_put_last(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    writer.put(Count(("a", "ü"), opened=1))
    writer.put(Count(("b",), failed=2))
    writer.put(Count(("a", "ü"), opened=1, closed=1, sent=1 << 40, received=3))
    assert reader.rows(0) == [Count(("a", "ü"), 1, 1, 0, 1 << 40, 3), Count(("b",), failed=2)]


def test_what_was_told_is_not_there_any_more(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    writer.put(Count(("a",), opened=1))
    assert reader.rows(1) == []  # the agent has Counted(1), the worker did not come to `begin`
    writer.begin(1)
    assert reader.rows(1) == []
    writer.put(Count(("b",), opened=1))
    assert reader.rows(1) == [Count(("b",), opened=1)]


def test_there_is_room_for_so_many(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    for number in range(MOST_ROWS + 5):
        writer.put(Count((str(number),), opened=1))
    writer.put(Count(("x" * 5000,), opened=1))
    assert len(reader.rows(0)) == MOST_ROWS


def test_any_content_is_read_without_harm(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    chance = random.Random(1)
    with mmap.mmap(writer.fd, 0) as memory:
        for _ in range(200):
            memory[:4096] = chance.randbytes(4096)
            assert len(reader.rows(0)) <= MOST_ROWS


def test_a_worker_cannot_take_it_away(pair: tuple[Writer, Reader]) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(pair[0].fd, 0)


def test_what_is_not_sealed_is_refused() -> None:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 20)
    with pytest.raises(CheckpointError):
        Reader(fd)
    os.close(fd)
