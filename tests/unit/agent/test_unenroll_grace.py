# SPDX-License-Identifier: Apache-2.0
"""A pod that leaves the mesh is captured until other nodes saw that its mark is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from ztunnel.agent.pods import unenroll_grace
from ztunnel.agent.pods.unenroll_grace import UnenrollGrace
from ztunnel.mesh.model import TunnelProtocol, Workload

POD = Workload(
    uid="c//Pod/shop/a",
    pod_uid="u1",
    name="a",
    namespace="shop",
    service_account="a",
    node="n1",
    addresses=("10.0.0.1",),
)
MARKED = TunnelProtocol.HBONE


def pod(**changes: object) -> Workload:
    return msgspec.structs.replace(POD, **changes)


def run(scenario: Callable[[UnenrollGrace, asyncio.Event], Awaitable[None]]) -> None:
    async def main() -> None:
        again = asyncio.Event()
        await asyncio.wait_for(scenario(UnenrollGrace(again.set), again), 30)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unenroll_grace, "LINGER", 0.05)


def test_enrolled_pods_are_kept_and_others_never_were() -> None:
    async def scenario(left: UnenrollGrace, _: asyncio.Event) -> None:
        assert left.kept([pod(enrolled=True)], set()).keys() == {"u1"}
        assert left.kept([pod()], set()) == {}
        assert left.kept([pod(protocol=MARKED)], set()) == {}  # a mark alone enrols nobody
        assert left.kept([pod(enrolled=True, host_network=True)], set()) == {}

    run(scenario)


def test_without_a_mark_a_pod_is_let_go_at_once() -> None:
    async def scenario(left: UnenrollGrace, _: asyncio.Event) -> None:
        assert left.kept([pod()], {"u1"}) == {}

    run(scenario)


def test_a_marked_pod_stays_until_its_mark_is_gone_and_a_moment_longer() -> None:
    async def scenario(left: UnenrollGrace, again: asyncio.Event) -> None:
        assert left.kept([pod(protocol=MARKED)], {"u1"}).keys() == {"u1"}
        assert left.kept([pod()], {"u1"}).keys() == {"u1"}
        await again.wait()
        assert left.kept([pod()], {"u1"}) == {}

    run(scenario)


def test_a_mark_that_can_not_be_removed_keeps_it_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unenroll_grace, "AT_MOST", 0.05)

    async def scenario(left: UnenrollGrace, again: asyncio.Event) -> None:
        assert left.kept([pod(protocol=MARKED)], {"u1"}).keys() == {"u1"}
        await again.wait()
        assert left.kept([pod(protocol=MARKED)], {"u1"}) == {}

    run(scenario)


def test_a_pod_that_comes_back_begins_anew() -> None:
    async def scenario(left: UnenrollGrace, again: asyncio.Event) -> None:
        left.kept([pod(protocol=MARKED)], {"u1"})
        left.kept([pod()], {"u1"})
        assert left.kept([pod(enrolled=True)], {"u1"}).keys() == {"u1"}
        await again.wait()
        assert left.kept([pod(enrolled=True, protocol=MARKED)], {"u1"}).keys() == {"u1"}
        assert left.kept([pod(protocol=MARKED)], {"u1"}).keys() == {"u1"}

    run(scenario)


def test_a_pod_that_is_gone_is_not_kept() -> None:
    async def scenario(left: UnenrollGrace, _: asyncio.Event) -> None:
        left.kept([pod(protocol=MARKED)], {"u1"})
        assert left.kept([], {"u1"}) == {}

    run(scenario)
