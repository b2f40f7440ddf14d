# SPDX-License-Identifier: Apache-2.0
"""Compilation in a thread: failures, time limits, and the last good configuration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.waiting import wait_until_async
from tests.unit.gateway.test_state import synced
from ztunnel.gateway import compiler as module
from ztunnel.gateway.compiler import Compiled, ConfigCompiler
from ztunnel.gateway.xds import descriptors
from ztunnel.gateway.xds.resources import CLUSTER
from ztunnel.ipc.gateway_messages import L7Delta
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.names import TypeUrl


class FakeGatewayCompiler:
    """Returns one cluster with the number of the call; `fail` replaces it."""

    fail: Any = None
    calls = 0

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway

    def compile(self, inputs: object) -> GatewayConfig:
        cls = type(self)
        cls.calls += 1
        if cls.fail is not None:
            cls.fail()
        cluster = {"name": f"{self.gateway} {cls.calls}"}
        return GatewayConfig({TypeUrl.CLUSTER: {"c": cluster}})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeGatewayCompiler]:
    fake = type("Fake", (FakeGatewayCompiler,), {})
    monkeypatch.setattr(module, "GatewayCompiler", fake)
    return fake


class Running:
    def __init__(self) -> None:
        self.wanted = {"shop/a"}
        self.published: list[tuple[str, Compiled]] = []
        self.compiler = ConfigCompiler(
            descriptors.load(),
            synced(),
            lambda: self.wanted,
            lambda gateway, compiled: self.published.append((gateway, compiled)),
        )


@pytest.fixture
async def running(fake: type[FakeGatewayCompiler]) -> AsyncIterator[Running]:
    made = Running()
    task = asyncio.create_task(made.compiler.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_each_wanted_gateway_is_compiled(running: Running) -> None:
    running.wanted = {"shop/a", "shop/b"}
    running.compiler.wake()
    await wait_until_async(lambda: len(running.published) == 2, "both")
    assert [gateway for gateway, _ in running.published] == ["shop/a", "shop/b"]
    assert running.published[0][1].config[CLUSTER]["c"].name == "c"


async def test_burst_of_changes_is_compiled_once(
    running: Running, fake: type[FakeGatewayCompiler]
) -> None:
    for _ in range(50):
        running.compiler.add(L7Delta())
    await wait_until_async(lambda: running.published, "the configuration")
    await asyncio.sleep(0.05)
    assert fake.calls == 1


async def test_failure_keeps_the_last_configuration_and_is_reported(
    running: Running, fake: type[FakeGatewayCompiler]
) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    running.compiler.wake()
    await wait_until_async(lambda: running.published, "the configuration")
    fake.fail = staticmethod(fail)
    running.compiler.add(L7Delta())
    await wait_until_async(lambda: running.compiler.error("shop/a"), "the failure")
    assert running.compiler.error("shop/a") == "RuntimeError: a defect"
    assert running.compiler.last("shop/a") == running.published[0][1]
    fake.fail = None
    running.compiler.wake()
    await wait_until_async(lambda: len(running.published) == 2, "the next configuration")
    assert running.compiler.error("shop/a") == ""


async def test_compilation_that_does_not_end_is_interrupted(
    running: Running, fake: type[FakeGatewayCompiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang() -> None:
        while True:
            pass

    monkeypatch.setattr(module, "MAX_COMPILE_S", 0.2)
    fake.fail = staticmethod(hang)
    running.compiler.wake()
    await wait_until_async(lambda: running.compiler.error("shop/a"), "the interruption")
    assert running.compiler.error("shop/a").startswith("CompileTimeoutError")
    fake.fail = None
    running.compiler.wake()
    await wait_until_async(lambda: running.published, "the next configuration")


async def test_gateway_without_pods_is_forgotten(running: Running) -> None:
    running.compiler.wake()
    await wait_until_async(lambda: running.published, "the configuration")
    running.wanted = set()
    running.compiler.wake()
    await wait_until_async(lambda: running.compiler.last("shop/a") is None, "the end")
