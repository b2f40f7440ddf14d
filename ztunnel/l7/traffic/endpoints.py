# SPDX-License-Identifier: Apache-2.0
"""The endpoints of a cluster: those of a subset, in groups by locality."""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.l7.config import ClusterFields, EndpointGroup, Json, Locality, LocalityPolicy
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.traffic.locality import NOWHERE, locality_of, matches, priority
from ztunnel.mesh.model import Endpoint, Workload

Groups = dict[Locality, list[Endpoint]]


def arrange(
    inputs: Inputs, policy: ClusterFields, endpoints: Sequence[Endpoint]
) -> list[EndpointGroup]:
    """Return the groups of endpoints of a cluster; none if its requests are rejected."""
    if policy.rejected:
        return []
    if not policy.labels and policy.locality is None:
        return [EndpointGroup(tuple(endpoints))] if endpoints else []
    groups: Groups = {}
    for endpoint in endpoints:
        workload = inputs.mesh.workload(endpoint.workload) if endpoint.workload else None
        if _has_labels(workload, policy.labels):
            locality = NOWHERE if policy.locality is None else locality_of(workload)
            groups.setdefault(locality, []).append(endpoint)
    if policy.locality is None:
        return [EndpointGroup(tuple(found)) for found in groups.values()]
    if policy.locality.shares:
        return _weighted(policy.locality, groups)
    return _prioritized(policy.locality, groups)


def _has_labels(workload: Workload | None, labels: dict[str, str]) -> bool:
    own = workload.labels if workload is not None else {}
    return all(own.get(name) == value for name, value in labels.items())


def _prioritized(policy: LocalityPolicy, groups: Groups) -> list[EndpointGroup]:
    """Envoy needs priorities without gaps."""
    distances = sorted({priority(policy, locality) for locality in groups})
    return [
        EndpointGroup(
            tuple(endpoints),
            {
                **_locality(locality),
                "priority": distances.index(priority(policy, locality)),
            },
        )
        for locality, endpoints in sorted(groups.items())
    ]


def _weighted(policy: LocalityPolicy, groups: Groups) -> list[EndpointGroup]:
    """The share of a pattern is divided among its localities by their number of endpoints.

    A locality belongs to the first pattern that covers it; others get no requests.
    """
    found: list[EndpointGroup] = []
    remaining = dict(sorted(groups.items()))
    for pattern, share in policy.shares:
        covered = [locality for locality in remaining if matches(pattern, locality)]
        total = sum(len(remaining[locality]) for locality in covered)
        for locality in covered:
            endpoints = tuple(remaining.pop(locality))
            if share:
                # in hundredths of a percent, as Envoy's weights are integers
                weight = max(1, round(100 * share * len(endpoints) / total))
                fields = {**_locality(locality), "load_balancing_weight": weight}
                found.append(EndpointGroup(endpoints, fields))
    return found


def _locality(locality: Locality) -> Json:
    names = ("region", "zone", "sub_zone")
    parts = {name: part for name, part in zip(names, locality, strict=True) if part}
    return {"locality": parts} if parts else {}
