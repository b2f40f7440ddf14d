# SPDX-License-Identifier: Apache-2.0
"""Resolves the names of ServiceEntries with resolution DNS by the node's own resolver.

A name that can't be resolved keeps its previous addresses: a failing resolver must not remove an
external service from the mesh.

Anyone who may write a ServiceEntry chooses names, and a name whose servers do not respond occupies
a thread for the resolver's whole timeout. Queries therefore have threads of their own, and names
whose last query failed are queried apart from the others.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from ztunnel.kube.view.service_entry_index import ServiceEntryIndex
from ztunnel.mesh.address import AddressError, canonical

REFRESH_INTERVAL_S = 30.0  # the TTL of the proxy's DNS responses
SCAN_INTERVAL_S = 1.0  # between checks for new names
MAX_CONCURRENT_QUERIES = 8
MAX_CONCURRENT_RETRIES = 4  # of names whose last query failed
MAX_ADDRESSES = 64  # of a name

Resolve = Callable[[str], Awaitable[tuple[str, ...]]]
log = structlog.get_logger()


_threads = ThreadPoolExecutor(
    MAX_CONCURRENT_QUERIES + MAX_CONCURRENT_RETRIES, thread_name_prefix="service-entry-dns"
)


async def node_resolver(name: str) -> tuple[str, ...]:
    """The addresses of a name as the node resolves it. Raises OSError."""
    query = partial(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_threads, query)
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
        self._failed: set[str] = set()  # names whose last query failed

    async def run(self) -> None:
        """Resolve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run(retries=False))
            tasks.create_task(self._run(retries=True))

    async def resolve_due(self, now: float) -> None:
        """Resolve the names that are due at `now`, in seconds of any clock."""
        await self._resolve_round(now, retries=False)
        await self._resolve_round(now, retries=True)

    async def _run(self, *, retries: bool) -> None:
        while True:
            await self._resolve_round(asyncio.get_running_loop().time(), retries=retries)
            await asyncio.sleep(self._scan_interval_s)

    async def _resolve_round(self, now: float, *, retries: bool) -> None:
        """Resolve the due names whose last query failed (`retries`), or the others."""
        names = self._index.names()
        self._due = {name: self._due.get(name, now) for name in names}
        self._failed.intersection_update(names)
        due = sorted(
            name
            for name, when in self._due.items()
            if when <= now and (name in self._failed) is retries
        )
        for name in due:
            self._due[name] = now + self._refresh_interval_s
        semaphore = asyncio.Semaphore(MAX_CONCURRENT_RETRIES if retries else MAX_CONCURRENT_QUERIES)
        changes = await asyncio.gather(*(self._resolve_name(name, semaphore) for name in due))
        if any(changes):
            self._on_change()

    async def _resolve_name(self, name: str, semaphore: asyncio.Semaphore) -> bool:
        async with semaphore:
            try:
                addresses = await self._resolve(name)
            except Exception as error:  # whatever one name causes concerns that name only
                self._failed.add(name)
                log.warning("ServiceEntry name not resolved", name=name, error=str(error))
                return False
        self._failed.discard(name)
        return self._index.set_addresses(name, addresses)
