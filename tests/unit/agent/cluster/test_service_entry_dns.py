# SPDX-License-Identifier: Apache-2.0
"""ServiceEntry names are resolved when new and when due, and keep addresses on failure."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from tests.unit.kube.objects.test_service_entries import entry
from ztunnel.agent.cluster.service_entry_dns import (
    MAX_CONCURRENT_QUERIES,
    MAX_CONCURRENT_RETRIES,
    ServiceEntryResolver,
    node_resolver,
)
from ztunnel.kube.view.cluster_view import ClusterView


class Names:
    """A resolver with fixed addresses."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, ...]] = {}
        self.queries: list[str] = []

    async def __call__(self, name: str) -> tuple[str, ...]:
        self.queries.append(name)
        if name not in self.known:
            raise OSError("no such name")
        return self.known[name]


async def test_names_are_resolved_when_due_and_keep_addresses_on_failure() -> None:
    view, names, changes = ClusterView("cluster.local", "Kubernetes"), Names(), []
    resolver = ServiceEntryResolver(
        view.entries, lambda: changes.append(1), names, refresh_interval_s=30
    )

    async def turn(now: float) -> list[tuple[str, ...]]:
        await resolver.resolve_due(now)
        found = view.snapshot().services
        return [tuple(each.address for each in service.endpoints) for service in found]

    assert await turn(0) == []
    view.upsert(entry(resolution="DNS"))
    names.known["api.example.com"] = ("192.0.2.7",)
    assert await turn(1) == [("192.0.2.7",)]
    assert await turn(30) == [("192.0.2.7",)]
    assert names.queries == ["api.example.com"]
    names.known.clear()
    assert await turn(31) == [("192.0.2.7",)]
    names.known["api.example.com"] = ("192.0.2.8",)
    assert await turn(61) == [("192.0.2.8",)]
    assert len(names.queries) == 3
    assert len(changes) == 2


async def test_node_resolver_returns_canonical_addresses() -> None:
    assert set(await node_resolver("localhost")) <= {"127.0.0.1", "::1"}
    assert await node_resolver("192.0.2.7") == ("192.0.2.7",)


async def test_unresponsive_names_occupy_no_thread_that_other_work_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    def unresponsive(*_: object, **__: object) -> list[object]:
        release.wait(30)
        raise OSError("timed out")

    monkeypatch.setattr(socket, "getaddrinfo", unresponsive)
    before = {thread.ident for thread in threading.enumerate()}
    queries = [asyncio.create_task(node_resolver(f"n{i}.example.com")) for i in range(40)]
    try:
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 5)
        assert time.monotonic() - started < 1
        resolving = {thread.ident for thread in threading.enumerate()} - before
        limit = MAX_CONCURRENT_QUERIES + MAX_CONCURRENT_RETRIES
        assert len(resolving) <= limit + 1  # and one for the call above
    finally:
        release.set()
        results = await asyncio.gather(*queries, return_exceptions=True)
    assert all(isinstance(result, OSError) for result in results)


async def test_names_that_fail_do_not_delay_the_refresh_of_others() -> None:
    view = ClusterView("cluster.local", "Kubernetes")
    stalled, dead = asyncio.Event(), [f"dead{i}.example.com" for i in range(20)]
    rounds, failing = 0, 0

    async def resolve(name: str) -> tuple[str, ...]:
        nonlocal rounds, failing
        if name == "api.example.com":
            rounds += 1
            return ("192.0.2.7",)
        failing += 1
        if failing > len(dead):
            await stalled.wait()
        raise OSError("timed out")

    view.upsert(entry(resolution="DNS", hosts=["api.example.com", *dead]))
    resolver = ServiceEntryResolver(
        view.entries, lambda: None, resolve, refresh_interval_s=0.01, scan_interval_s=0.01
    )
    task = asyncio.create_task(resolver.run())
    try:
        async with asyncio.timeout(10):
            while failing <= len(dead):
                await asyncio.sleep(0.01)
            reached = rounds
            while rounds < reached + 5:
                await asyncio.sleep(0.01)
        assert failing <= len(dead) + MAX_CONCURRENT_RETRIES
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_defect_while_one_name_is_resolved_delays_no_other() -> None:
    view = ClusterView("cluster.local", "Kubernetes")

    async def resolve(name: str) -> tuple[str, ...]:
        if name == "bad.example.com":
            raise ValueError("defect")
        return ("192.0.2.7",)

    resolver = ServiceEntryResolver(view.entries, lambda: None, resolve)
    view.upsert(entry(resolution="DNS", hosts=["bad.example.com", "api.example.com"]))
    await resolver.resolve_due(1)
    found = {service.name: service.endpoints for service in view.snapshot().services}
    assert found["bad.example.com"] == ()
    assert [each.address for each in found["api.example.com"]] == ["192.0.2.7"]
