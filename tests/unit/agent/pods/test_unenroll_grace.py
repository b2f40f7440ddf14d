# SPDX-License-Identifier: Apache-2.0
"""An unenrolled pod stays captured until other nodes observe that its annotation is removed."""

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


async def test_only_enrolled_pods_are_selected(left: UnenrollGrace) -> None:
    assert left.select([pod(enrolled=True)], set()).keys() == {"u1"}
    assert left.select([pod()], set()) == {}
    assert left.select([pod(protocol=MARKED)], set()) == {}  # the annotation alone does not enroll
    assert left.select([pod(enrolled=True, host_network=True)], set()) == {}


async def test_pod_without_annotation_is_released_at_once(left: UnenrollGrace) -> None:
    assert left.select([pod()], {"u1"}) == {}


async def test_annotated_pod_is_released_after_annotation_removal_and_propagation(
    left: UnenrollGrace, again: asyncio.Event
) -> None:
    assert left.select([pod(protocol=MARKED)], {"u1"}).keys() == {"u1"}
    assert left.select([pod()], {"u1"}).keys() == {"u1"}
    await again.wait()
    assert left.select([pod()], {"u1"}) == {}


async def test_grace_is_bounded_if_annotation_is_not_removed(
    left: UnenrollGrace, again: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unenroll_grace, "MAX_GRACE_S", 0.05)

    assert left.select([pod(protocol=MARKED)], {"u1"}).keys() == {"u1"}
    await again.wait()
    assert left.select([pod(protocol=MARKED)], {"u1"}) == {}


async def test_reenrolled_pod_gets_a_new_grace_period(
    left: UnenrollGrace, again: asyncio.Event
) -> None:
    left.select([pod(protocol=MARKED)], {"u1"})
    left.select([pod()], {"u1"})
    assert left.select([pod(enrolled=True)], {"u1"}).keys() == {"u1"}
    await again.wait()
    assert left.select([pod(enrolled=True, protocol=MARKED)], {"u1"}).keys() == {"u1"}
    assert left.select([pod(protocol=MARKED)], {"u1"}).keys() == {"u1"}


async def test_deleted_pod_is_released_at_once(left: UnenrollGrace) -> None:
    left.select([pod(protocol=MARKED)], {"u1"})
    assert left.select([], {"u1"}) == {}
