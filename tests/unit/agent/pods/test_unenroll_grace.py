# SPDX-License-Identifier: Apache-2.0
"""A pod that leaves the mesh is captured until other nodes saw that its mark is gone."""

from __future__ import annotations

import asyncio

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

pytestmark = pytest.mark.timeout(30)


def pod(**changes: object) -> Workload:
    return msgspec.structs.replace(POD, **changes)


@pytest.fixture
def again() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def left(again: asyncio.Event) -> UnenrollGrace:
    return UnenrollGrace(again.set)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unenroll_grace, "PROPAGATION_S", 0.05)


async def test_enrolled_pods_are_kept_and_others_never_were(left: UnenrollGrace) -> None:
    assert left.select([pod(enrolled=True)], set()).keys() == {"u1"}
    assert left.select([pod()], set()) == {}
    assert left.select([pod(protocol=MARKED)], set()) == {}  # a mark alone enrols nobody
    assert left.select([pod(enrolled=True, host_network=True)], set()) == {}


async def test_without_a_mark_a_pod_is_let_go_at_once(left: UnenrollGrace) -> None:
    assert left.select([pod()], {"u1"}) == {}


async def test_a_marked_pod_stays_until_its_mark_is_gone_and_a_moment_longer(
    left: UnenrollGrace, again: asyncio.Event
) -> None:
    assert left.select([pod(protocol=MARKED)], {"u1"}).keys() == {"u1"}
    assert left.select([pod()], {"u1"}).keys() == {"u1"}
    await again.wait()
    assert left.select([pod()], {"u1"}) == {}


async def test_a_mark_that_can_not_be_removed_keeps_it_for_a_bounded_time(
    left: UnenrollGrace, again: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unenroll_grace, "MAX_GRACE_S", 0.05)

    assert left.select([pod(protocol=MARKED)], {"u1"}).keys() == {"u1"}
    await again.wait()
    assert left.select([pod(protocol=MARKED)], {"u1"}) == {}


async def test_a_pod_that_comes_back_begins_anew(left: UnenrollGrace, again: asyncio.Event) -> None:
    left.select([pod(protocol=MARKED)], {"u1"})
    left.select([pod()], {"u1"})
    assert left.select([pod(enrolled=True)], {"u1"}).keys() == {"u1"}
    await again.wait()
    assert left.select([pod(enrolled=True, protocol=MARKED)], {"u1"}).keys() == {"u1"}
    assert left.select([pod(protocol=MARKED)], {"u1"}).keys() == {"u1"}


async def test_a_pod_that_is_gone_is_not_kept(left: UnenrollGrace) -> None:
    left.select([pod(protocol=MARKED)], {"u1"})
    assert left.select([], {"u1"}) == {}
