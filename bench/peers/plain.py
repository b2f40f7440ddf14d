# SPDX-License-Identifier: Apache-2.0
"""No proxies at all: the client dials the server's own address."""

from __future__ import annotations

from bench.comparison.measurements import NO_MESH
from bench.peers.peer import Address, Peer, Route


class NoMesh(Peer):
    """Plain TCP over the same path."""

    name = NO_MESH

    def __init__(self) -> None:
        self._route: Route | None = None

    def absent(self) -> str | None:
        return None

    def start(self, route: Route) -> None:
        self._route = route

    def stop(self) -> None:
        """Nothing runs."""

    @property
    def address(self) -> Address:
        assert self._route is not None, "not started"
        return self._route.forward

    @property
    def processes(self) -> tuple[int, ...]:
        return ()
