# SPDX-License-Identifier: Apache-2.0
"""The virtual addresses of ServiceEntries of a lab, in their status as in a cluster. Pure."""

from __future__ import annotations

from ztunnel.kube.objects.virtual_addresses import plan_addresses, with_addresses
from ztunnel.lab.objects import Object, Objects, of_kind
from ztunnel.mesh.model import DEFAULT_CLUSTER_DOMAIN


def plan_entries(objects: Objects) -> tuple[list[Object], list[str]]:
    """Return the ServiceEntries whose status changes, and the problems."""
    entries = of_kind(objects, "ServiceEntry")
    changed, problems = plan_addresses(entries, DEFAULT_CLUSTER_DOMAIN, lambda _: False)
    return [with_addresses(each.obj, each.addresses) for each in changed], problems
