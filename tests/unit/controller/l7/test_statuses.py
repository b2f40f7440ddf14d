# SPDX-License-Identifier: Apache-2.0
"""Writes of status: limited per namespace, without computing the delayed ones again and again."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ztunnel.controller.l7.computers import Computers, Pending
from ztunnel.controller.l7.namespace_rate import BURST, RATE_PER_S, NamespaceRate
from ztunnel.controller.l7.object_client import ObjectClient, Ref
from ztunnel.controller.l7.statuses import Statuses
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.client.request import CONFLICT, ApiError


class Fakes:
    """Watch, computers and client: every object has an outdated status until it is written."""

    kinds = ("HTTPRoute",)

    def __init__(self) -> None:
        self.now = 100.0
        self.computed = 0
        self.written: list[str] = []
        self.error: ApiError | None = None
        self.force = True
        self.statuses = Statuses(
            cast("ObjectClient", self),
            cast("Watches", self),
            cast("Computers", self),
            lambda: self.now,
        )

    def of(self, ref: Ref) -> dict[str, Any]:
        return {"kind": ref.kind, "metadata": {"namespace": ref.namespace, "name": ref.name}}

    def pending(self, obj: dict[str, Any]) -> Pending | None:
        self.computed += 1
        is_written = obj["metadata"]["name"] in self.written
        return None if is_written else Pending(obj, {}, self.force)

    def apply_status(self, obj: dict[str, Any], status: object, *, force: bool) -> bool:
        if self.error is not None:
            raise self.error
        self.written.append(obj["metadata"]["name"])
        return True


def route(number: int, namespace: str = "a") -> Ref:
    return Ref("HTTPRoute", namespace, f"{namespace}-{number}")


def test_slots_of_a_namespace_follow_each_other() -> None:
    now = [0.0]
    rate = NamespaceRate(lambda: now[0])
    assert max(rate.reserve_s("a") for _ in range(BURST)) == pytest.approx(0.0)
    later = [rate.reserve_s("a") for _ in range(3)]
    assert later == pytest.approx([1 / RATE_PER_S, 2 / RATE_PER_S, 3 / RATE_PER_S])
    assert rate.reserve_s("b") == 0.0
    now[0] = 1000.0
    assert rate.reserve_s("a") == 0.0


def test_delayed_write_is_computed_twice_only() -> None:
    fakes = Fakes()
    refs = [route(number) for number in range(BURST + 200)]
    delays = {ref: fakes.statuses.reconcile(ref) for ref in refs}
    assert len(fakes.written) == BURST
    for ref in refs[BURST:]:
        delay_s = delays[ref]
        assert delay_s is not None
        fakes.now = 100.0 + delay_s
        assert fakes.statuses.reconcile(ref) is None
    assert len(fakes.written) == len(refs)
    assert fakes.computed == BURST + 2 * 200
    assert fakes.now - 100.0 == pytest.approx(200 / RATE_PER_S)


def test_churn_of_one_namespace_does_not_delay_another() -> None:
    fakes = Fakes()
    for number in range(BURST + 10):
        fakes.statuses.reconcile(route(number))
    assert fakes.statuses.reconcile(route(0, "b")) is None
    assert "b-0" in fakes.written


def test_conflict_is_retried_only_for_lists_of_several_controllers() -> None:
    fakes = Fakes()
    fakes.error = ApiError(CONFLICT, "changed")
    with pytest.raises(ApiError):
        fakes.statuses.reconcile(route(1))
    fakes.force = False  # another controller owns the condition
    assert fakes.statuses.reconcile(route(2)) is None
