# SPDX-License-Identifier: Apache-2.0
"""No proxies: the client dials the address of the server."""

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
        """There is nothing to stop."""

    @property
    def address(self) -> Address:
        assert self._route is not None, "not started"
        return self._route.forward

    @property
    def processes(self) -> tuple[int, ...]:
        return ()
