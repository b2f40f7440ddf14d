# SPDX-License-Identifier: Apache-2.0
"""Selects a backend of a service port, weighted by capacity."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from ztunnel.mesh.address import family
from ztunnel.mesh.model import Service, SocketAddress


@dataclass(frozen=True, slots=True)
class Backends:
    """The ready endpoints of one family, with the cumulative sums of their weights."""

    targets: tuple[SocketAddress, ...]
    cumulative_weights: tuple[int, ...]

    def choose(self, chance: float) -> SocketAddress:
        """Return one of the targets, which must not be empty; `chance` is in [0, 1)."""
        index = bisect_right(self.cumulative_weights, chance * self.cumulative_weights[-1])
        return self.targets[min(index, len(self.targets) - 1)]  # sums above 2**53 round up


def ready_backends(
    service: Service, port: str, wanted: int, capacity: Callable[[str], int]
) -> Backends:
    """Return the ready backends of the port named `port` for the family `wanted` (4 or 6).

    `capacity` maps a workload uid to its weight; values below one count as one.
    """
    ready = [
        endpoint
        for endpoint in service.endpoints
        if endpoint.ready and port in endpoint.ports and family(endpoint.address) == wanted
    ]
    return Backends(
        tuple(SocketAddress(one.address, one.ports[port]) for one in ready),
        tuple(accumulate(max(1, capacity(one.workload)) for one in ready)),
    )
