# SPDX-License-Identifier: Apache-2.0
"""The backends of a service's port, weighted by capacity."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from ztunnel.mesh.address import family
from ztunnel.mesh.model import Service, SocketAddress


@dataclass(frozen=True, slots=True)
class Backends:
    """Where the ready endpoints of one family are; `sums` are the running sums of their weights."""

    targets: tuple[SocketAddress, ...]
    sums: tuple[int, ...]

    def choose(self, chance: float) -> SocketAddress:
        """One of the targets, which must not be empty; `chance` is of [0, 1)."""
        index = bisect_right(self.sums, chance * self.sums[-1])
        return self.targets[min(index, len(self.targets) - 1)]  # sums beyond 2**53 round up


def backends(service: Service, port: str, wanted: int, capacity: Callable[[str], int]) -> Backends:
    """Those of the service's port named `port` and of a family. `capacity` is that of a
    workload's uid; less than one counts as one."""
    ready = [
        endpoint
        for endpoint in service.endpoints
        if endpoint.ready and port in endpoint.ports and family(endpoint.address) == wanted
    ]
    return Backends(
        tuple(SocketAddress(one.address, one.ports[port]) for one in ready),
        tuple(accumulate(max(1, capacity(one.workload)) for one in ready)),
    )
