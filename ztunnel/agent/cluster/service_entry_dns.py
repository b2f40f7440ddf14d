# SPDX-License-Identifier: Apache-2.0
"""Resolves the names of ServiceEntries with resolution DNS by the node's own resolver.

A name that can't be resolved keeps its previous addresses: a failing resolver must not remove an
external service from the mesh.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import structlog

from ztunnel.kube.view.service_entry_index import ServiceEntryIndex
from ztunnel.mesh.address import AddressError, canonical

REFRESH_INTERVAL_S = 30.0  # the TTL of the proxy's DNS responses
SCAN_INTERVAL_S = 1.0  # between checks for new names
MAX_CONCURRENT_QUERIES = 8
MAX_ADDRESSES = 64  # of a name

Resolve = Callable[[str], Awaitable[tuple[str, ...]]]
log = structlog.get_logger()


async def node_resolver(name: str) -> tuple[str, ...]:
    """The addresses of a name as the node resolves it. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    addresses = []
    for *_, address in found:
        try:
            addresses.append(canonical(str(address[0])))
        except AddressError:
            continue  # with a zone index, which is valid on this node only
    return tuple(sorted(set(addresses)))[:MAX_ADDRESSES]


class ServiceEntryResolver:
    """Resolves the names of an index; `on_change` is called when addresses have changed."""

    def __init__(
        self,
        index: ServiceEntryIndex,
        on_change: Callable[[], None],
        resolve: Resolve = node_resolver,
        *,
        refresh_interval_s: float = REFRESH_INTERVAL_S,
        scan_interval_s: float = SCAN_INTERVAL_S,
    ) -> None:
        self._index = index
        self._on_change = on_change
        self._resolve = resolve
        self._refresh_interval_s = refresh_interval_s
        self._scan_interval_s = scan_interval_s
        self._due: dict[str, float] = {}

    async def run(self) -> None:
        """Resolve until cancelled."""
        while True:
            await self.resolve_due(asyncio.get_running_loop().time())
            await asyncio.sleep(self._scan_interval_s)

    async def resolve_due(self, now: float) -> None:
        """Resolve the names that are due at `now`, in seconds of any clock."""
        names = self._index.names()
        self._due = {name: self._due.get(name, now) for name in names}
        due = sorted(name for name, when in self._due.items() if when <= now)
        semaphore = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)
        changes = await asyncio.gather(*(self._resolve_name(name, semaphore) for name in due))
        for name in due:
            self._due[name] = now + self._refresh_interval_s
        if any(changes):
            self._on_change()

    async def _resolve_name(self, name: str, semaphore: asyncio.Semaphore) -> bool:
        async with semaphore:
            try:
                addresses = await self._resolve(name)
            except (OSError, UnicodeError) as error:
                log.warning("ServiceEntry name not resolved", name=name, error=str(error))
                return False
        return self._index.set_addresses(name, addresses)
