# SPDX-License-Identifier: Apache-2.0
"""Writes the virtual addresses of ServiceEntries to their status, as Istio's ip-autoallocate does.

    ServiceEntry ──▶ kube.objects.virtual_addresses ──▶ server-side apply of status.addresses

Another controller that owns the field (istiod) keeps it.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from ztunnel.controller.l7.object_client import ObjectClient, Ref, for_all, ref_of
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.client.request import CONFLICT, ApiError
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.objects.virtual_addresses import (
    Address,
    Allocation,
    plan_addresses,
    with_addresses,
)

KIND = "ServiceEntry"
FIELD_MANAGER = "ztunnel-virtual-addresses"  # not that of the conditions: an apply replaces all

log = structlog.get_logger()


class VirtualAddresses:
    """Called by one thread at a time."""

    def __init__(
        self,
        client: ObjectClient,
        watches: Watches,
        cluster_domain: str,
        is_claimed: Callable[[str], bool],
    ) -> None:
        """`is_claimed`: whether an address belongs to the cluster."""
        self._client = client
        self._watches = watches
        self._cluster_domain = cluster_domain
        self._is_claimed = is_claimed
        self._written: dict[str, list[Address]] = {}  # by uid, until the watch shows them
        self._foreign: set[str] = set()  # uids whose addresses another controller owns
        self._problems: frozenset[str] = frozenset()  # reported

    def reconcile(self, _: Ref) -> None:
        """Write the addresses of all entries that lack some. Raises ApiError."""
        objects = [self._current(obj) for obj in self._watches.objects(KIND)]
        known = {obj["metadata"].get("uid") for obj in objects}
        self._written = {uid: value for uid, value in self._written.items() if uid in known}
        self._foreign &= known
        changed, problems = plan_addresses(objects, self._cluster_domain, self._is_claimed)
        for problem in sorted(set(problems) - self._problems):
            log.warning("virtual address not allocated", reason=problem)
        self._problems = frozenset(problems)
        for_all(changed, self._write)

    def _current(self, obj: Object) -> Object:
        """The object as it is after our own write, which the watch may not have seen yet."""
        uid = obj["metadata"].get("uid", "")
        status = obj.get("status")
        if isinstance(status, dict) and status.get("addresses"):
            self._written.pop(uid, None)
            return obj
        written = self._written.get(uid)
        return obj if written is None else with_addresses(obj, written)

    def _write(self, allocation: Allocation) -> None:
        obj, addresses = allocation.obj, allocation.addresses
        ref, uid = ref_of(obj), obj["metadata"].get("uid", "")
        if uid in self._foreign:
            return
        status = {"addresses": addresses}
        try:
            found = self._client.apply_status(obj, status, force=False, manager=FIELD_MANAGER)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            self._foreign.add(uid)
            log.info("status not written: owned by another controller", object=str(ref))
            return
        if found:
            self._written[uid] = addresses
            values = [each["value"] for each in addresses]
            log.info("virtual addresses allocated", object=str(ref), addresses=values)
