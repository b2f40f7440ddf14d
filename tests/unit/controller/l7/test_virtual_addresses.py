# SPDX-License-Identifier: Apache-2.0
"""Virtual addresses are written once, and survive a watch that lags behind."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.unit.kube.objects.test_virtual_addresses import entry
from ztunnel.controller.l7.object_client import ObjectClient, Ref
from ztunnel.controller.l7.virtual_addresses import FIELD_MANAGER, VirtualAddresses
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.client.request import CONFLICT, ApiError

ALL = Ref("", "", "")
Object = dict[str, Any]


class Fakes:
    """The watch shows `objects`; writes do not change them."""

    def __init__(self, *objects: Object) -> None:
        self.objects_now = [self.with_uid(obj) for obj in objects]
        self.written: list[tuple[str, list[str]]] = []
        self.error: ApiError | None = None
        self.accepted: set[str] = set()  # in spite of `error`
        self.claimed: set[str] = set()
        self.addresses = VirtualAddresses(
            cast("ObjectClient", self),
            cast("Watches", self),
            "cluster.local",
            lambda ip: ip in self.claimed,
        )

    @staticmethod
    def with_uid(obj: Object) -> Object:
        return {**obj, "metadata": {**obj["metadata"], "uid": obj["metadata"]["name"]}}

    def objects(self, kind: str) -> list[Object]:
        return self.objects_now if kind == "ServiceEntry" else []

    def apply_status(self, obj: Object, status: Object, *, force: bool, manager: str) -> bool:
        assert (force, manager) == (False, FIELD_MANAGER)
        if self.error is not None and obj["metadata"]["name"] not in self.accepted:
            raise self.error
        values = [each["value"] for each in status["addresses"]]
        self.written.append((obj["metadata"]["name"], values))
        return True


def test_entry_is_written_once_although_the_watch_lags() -> None:
    fakes = Fakes(entry("api"))
    fakes.addresses.reconcile(ALL)
    fakes.addresses.reconcile(ALL)
    assert [name for name, _ in fakes.written] == ["api"]


def test_address_of_a_lagging_watch_is_not_given_to_another_entry() -> None:
    fakes = Fakes(entry("api"))
    fakes.addresses.reconcile(ALL)
    (_, first), *_ = fakes.written
    fakes.objects_now.append(Fakes.with_uid(entry("new", age="9")))
    fakes.addresses.reconcile(ALL)
    (_, second) = fakes.written[-1]
    assert not set(first) & set(second)


def test_cluster_addresses_are_not_allocated() -> None:
    fakes = Fakes(entry("api"))
    fakes.addresses.reconcile(ALL)
    other = Fakes(entry("api"))
    other.claimed = set(fakes.written[0][1])
    other.addresses.reconcile(ALL)
    assert not other.claimed & set(other.written[0][1])


def test_field_of_another_controller_is_left_alone() -> None:
    fakes = Fakes(entry("api"))
    fakes.error = ApiError(CONFLICT, "conflict")
    fakes.addresses.reconcile(ALL)
    fakes.error = None
    fakes.addresses.reconcile(ALL)
    assert fakes.written == []


def test_other_errors_are_retried() -> None:
    fakes = Fakes(entry("api"))
    fakes.error = ApiError(500, "no")
    with pytest.raises(ApiError):
        fakes.addresses.reconcile(ALL)
    fakes.error = None
    fakes.addresses.reconcile(ALL)
    assert len(fakes.written) == 1


def test_entry_that_the_server_rejects_does_not_affect_others() -> None:
    fakes = Fakes(entry("bad", age="1"), entry("good", age="2"))
    fakes.error, fakes.accepted = ApiError(422, "invalid"), {"good"}
    with pytest.raises(ApiError):  # and it is tried again
        fakes.addresses.reconcile(ALL)
    assert [name for name, _ in fakes.written] == ["good"]
