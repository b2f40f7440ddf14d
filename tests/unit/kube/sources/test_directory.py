# SPDX-License-Identifier: Apache-2.0
"""The directory source with real files and real inotify."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import yaml

from tests.support import kube_objects as objects
from tests.support.kube_objects import AMBIENT
from tests.support.waiting import wait_until_async
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.sources import directory
from ztunnel.kube.sources.directory import DirectorySource
from ztunnel.kube.view.cluster_view import ClusterView, ViewChange
from ztunnel.mesh.model import TunnelProtocol

DEADLINE = 10.0


class Follower:
    """A running source, its view, and the number of reported changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.view = ClusterView("td", "c")
        self.source = DirectorySource(path, self.view, self._changed)
        self.calls = 0

    def _changed(self) -> None:
        self.calls += 1

    def names(self) -> list[str]:
        change = self.view.snapshot()
        return sorted(w.name for w in change.workloads) + sorted(s.name for s in change.services)

    async def until(self, condition: Callable[[], bool]) -> float:
        """Wait for a condition; returns the seconds it took."""
        began = time.monotonic()
        await wait_until_async(
            condition, lambda: (self.names(), self.source.errors()), timeout_s=DEADLINE
        )
        return time.monotonic() - began

    async def until_names(self, *names: str) -> None:
        await self.until(lambda: self.names() == list(names))


@contextlib.asynccontextmanager
async def following(path: Path, *, synced: bool = True) -> AsyncIterator[Follower]:
    follower = Follower(path)
    task = asyncio.create_task(follower.source.run())
    try:
        if synced:
            await asyncio.wait_for(follower.source.synced.wait(), DEADLINE)
        yield follower
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def write(path: Path, *objs: Object) -> None:
    write_text(path, yaml.safe_dump_all(objs))


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.rename(path)


async def test_initial_content_is_in_view_when_synced(tmp_path: Path) -> None:
    write(tmp_path / "many.yaml", objects.namespace("default", AMBIENT), objects.service("s"))
    (tmp_path / "pod.json").write_text(json.dumps(objects.pod("a", "10.0.0.1")))
    (tmp_path / ".half.yaml").write_text("{")
    (tmp_path / "README").write_text("{")
    async with following(tmp_path) as follower:
        assert follower.names() == ["a", "s"]
        assert follower.calls == 1
        assert follower.source.errors() == {}


async def test_empty_directory_is_synced(tmp_path: Path) -> None:
    async with following(tmp_path) as follower:
        assert follower.view.snapshot() == ViewChange()
        assert follower.calls == 1


async def test_directory_created_later_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "later"
    async with following(path, synced=False) as follower:
        await asyncio.sleep(0)
        assert not follower.source.synced.is_set()
        path.mkdir()
        write(path / "a.yaml", objects.pod("a", "10.0.0.1"))
        await follower.until_names("a")


async def test_file_create_update_delete(tmp_path: Path) -> None:
    async with following(tmp_path) as follower:
        file = tmp_path / "a.yaml"
        write(file, objects.pod("a", "10.0.0.1"), objects.pod("b", "10.0.0.2"))
        await follower.until_names("a", "b")
        write(file, objects.pod("b", "10.0.0.2"), objects.pod("c", "10.0.0.3"))
        await follower.until_names("b", "c")
        file.unlink()
        await follower.until_names()


async def test_label_change_is_applied_within_a_second(tmp_path: Path) -> None:
    """Typically 40 ms; the limit allows for a busy machine."""

    file = tmp_path / "ns.yaml"
    write(file, objects.namespace("default"))
    write(tmp_path / "a.yaml", objects.pod("a", "10.0.0.1"))
    async with following(tmp_path) as follower:
        times = []
        for labels in (AMBIENT, {}, AMBIENT, {}, AMBIENT):
            wanted = TunnelProtocol.HBONE if labels else TunnelProtocol.NONE
            write(file, objects.namespace("default", labels))
            times.append(
                await follower.until(
                    lambda wanted=wanted: (  # type: ignore[misc]
                        follower.view.snapshot().workloads[0].protocol is wanted
                    )
                )
            )
        assert sorted(times)[len(times) // 2] < 0.2, times


async def test_write_in_place_is_detected(tmp_path: Path) -> None:
    async with following(tmp_path) as follower:
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(objects.pod("a", "10.0.0.1")))
        await follower.until_names("a")
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(objects.pod("b", "10.0.0.1")))
        await follower.until_names("b")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "a: [",
        "just a text",
        "kind: Pod\nmetadata: {}",
        "kind: 5",
        "kind: List\nitems: 5",
        "day: 2026-13-45",
        "? [a]\n: b",
        "\x00",
    ],
)
async def test_invalid_file_keeps_last_valid_content(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.yaml"
    write(file, objects.pod("a", "10.0.0.1"))
    async with following(tmp_path) as follower:
        write_text(file, text)
        await follower.until(lambda: "a.yaml" in follower.source.errors())
        assert follower.names() == ["a"]
        write(file, objects.pod("b", "10.0.0.1"))
        await follower.until_names("b")
        assert follower.source.errors() == {}
        write_text(file, text)
        await follower.until(lambda: "a.yaml" in follower.source.errors())
        file.unlink()
        await follower.until_names()
        assert follower.source.errors() == {}


async def test_invalid_file_does_not_affect_others(tmp_path: Path) -> None:
    async with following(tmp_path) as follower:
        (tmp_path / "bad.json").write_bytes(b'{"kind": "\xff"}')
        (tmp_path / "dir.yaml").mkdir()
        write(tmp_path / "good.yaml", objects.pod("a", "10.0.0.1"))
        await follower.until_names("a")
        await follower.until(lambda: sorted(follower.source.errors()) == ["bad.json", "dir.yaml"])
        (tmp_path / "dir.yaml").rmdir()
        write(tmp_path / "dir.yaml", objects.pod("b", "10.0.0.2"))
        await follower.until_names("a", "b")


async def test_unreadable_file_at_start_delays_first_view(tmp_path: Path) -> None:
    """It may contain a policy: without it, denied connections would be allowed."""

    write_text(tmp_path / "policy.yaml", "kind: [")
    write(tmp_path / "good.yaml", objects.pod("a", "10.0.0.1"))
    async with following(tmp_path, synced=False) as follower:
        await follower.until(lambda: "policy.yaml" in follower.source.errors())
        write(tmp_path / "more.yaml", objects.pod("b", "10.0.0.2"))
        await follower.until_names("a", "b")
        assert not follower.source.synced.is_set()
        assert follower.calls == 0
        write(tmp_path / "policy.yaml", objects.pod("c", "10.0.0.3"))
        await asyncio.wait_for(follower.source.synced.wait(), DEADLINE)
        assert follower.names() == ["a", "b", "c"]
        assert follower.calls == 1


async def test_renaming_file_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", objects.pod("a", "10.0.0.1"))
    async with following(tmp_path) as follower:
        follower.view.drain()
        (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
        write(tmp_path / "c.yaml", objects.pod("c", "10.0.0.2"))
        await follower.until_names("a", "c")
        change = follower.view.drain()
        assert [w.name for w in change.workloads] == ["c"]
        assert not change.removed_workloads


async def test_last_file_takes_precedence_for_duplicate_object(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", objects.pod("a", "10.0.0.1"))
    write(tmp_path / "b.yaml", objects.pod("a", "10.0.0.2"))

    async with following(tmp_path) as follower:

        def address() -> list[str]:
            return [w.addresses[0] for w in follower.view.snapshot().workloads]

        assert address() == ["10.0.0.2"]
        assert "b.yaml" in follower.source.errors()["a.yaml"]
        (tmp_path / "b.yaml").unlink()
        await follower.until(lambda: address() == ["10.0.0.1"])
        assert follower.source.errors() == {}
        (tmp_path / "a.yaml").unlink()
        await follower.until_names()


async def test_lists_and_multiple_documents_are_unpacked(tmp_path: Path) -> None:
    pods = [objects.pod(name, f"10.0.0.{n}") for n, name in enumerate("abcd", 1)]
    write(tmp_path / "a.yaml", {"apiVersion": "v1", "kind": "List", "items": pods[:2]})
    (tmp_path / "b.json").write_text("\n".join(map(json.dumps, pods[2:])))
    async with following(tmp_path) as follower:
        assert follower.names() == ["a", "b", "c", "d"]


async def test_removed_directory_keeps_objects_until_restored(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    write(path / "a.yaml", objects.pod("a", "10.0.0.1"))
    write(path / "b.yaml", objects.pod("b", "10.0.0.2"))
    async with following(path) as follower:
        path.rename(tmp_path / "aside")
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        write(fresh / "b.yaml", objects.pod("b", "10.0.0.2"))
        write(fresh / "c.yaml", objects.pod("c", "10.0.0.3"))
        assert follower.names() == ["a", "b"]
        fresh.rename(path)
        await follower.until_names("b", "c")
        write(path / "d.yaml", objects.pod("d", "10.0.0.4"))
        await follower.until_names("b", "c", "d")


async def test_changes_are_found_without_inotify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> AsyncIterator[object]:
        raise OSError("OS file watch limit reached")
        yield

    monkeypatch.setattr(directory, "awatch", refused)
    monkeypatch.setattr(directory, "RESCAN_INTERVAL_MS", 20)
    async with following(tmp_path) as follower:
        write(tmp_path / "a.yaml", objects.pod("a", "10.0.0.1"))
        await follower.until_names("a")


async def test_burst_of_changes_converges(tmp_path: Path) -> None:
    async with following(tmp_path) as follower:
        for round_number in range(5):
            for number in range(40):
                file = tmp_path / f"{number}.yaml"
                if (number + round_number) % 3:
                    write(file, objects.pod(f"p{number}", f"10.0.{round_number}.{number}"))
                else:
                    file.unlink(missing_ok=True)
                await asyncio.sleep(0)
        there = sorted(f"p{name.removesuffix('.yaml')}" for name in os.listdir(tmp_path))
        await follower.until(
            lambda: (
                follower.names() == there
                and all(
                    w.addresses[0].startswith("10.0.4.") for w in follower.view.snapshot().workloads
                )
            )
        )


async def test_cancellation_is_immediate(tmp_path: Path) -> None:
    began = 0.0
    async with following(tmp_path):
        began = time.monotonic()
    assert time.monotonic() - began < directory.RESCAN_INTERVAL_MS / 1000 / 2
