# SPDX-License-Identifier: Apache-2.0
"""Which connections a port that every client can reach holds open.

The port holds a limited number of connections, and of each source address a share. Beyond its
share, a source loses its oldest connection. When the port is full, the oldest connection of a
client is closed, and those of preferred sources, such as the node that sends the probes, only if
there is no other. A client that sends nothing can therefore block neither the port nor others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from ztunnel.mesh.address import AddressError, canonical

C = TypeVar("C")


class ConnectionShares(Generic[C]):
    """The open connections, oldest first. Performs no I/O: the caller closes what is evicted."""

    def __init__(self, limit: int, per_source: int, preferred: Iterable[str] = ()) -> None:
        """`preferred` sources have no share of their own; a text that is no address is ignored."""
        self._limit = limit
        self._per_source = per_source
        self._preferred = frozenset(map(source_address, preferred))
        self._sources: dict[C, str] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def add(self, connection: C, address: str) -> C | None:
        """Add a connection from an address; returns the one that the caller must close, if any."""
        source = source_address(address)
        evicted = self._to_evict(source)
        if evicted is not None:
            del self._sources[evicted]
        self._sources[connection] = source
        return evicted

    def remove(self, connection: C) -> None:
        """A connection was closed. Idempotent."""
        self._sources.pop(connection, None)

    def _to_evict(self, source: str) -> C | None:
        if source not in self._preferred:
            own = [one for one, other in self._sources.items() if other == source]
            if len(own) >= self._per_source:
                return own[0]
        if len(self._sources) < self._limit:
            return None
        for connection, other in self._sources.items():
            if other not in self._preferred:
                return connection
        return next(iter(self._sources))


def source_address(text: str) -> str:
    """The canonical form of a peer's address: IPv4 where it is v4-mapped, without a zone."""
    try:
        return canonical(text.partition("%")[0])
    except AddressError:
        return text
