# SPDX-License-Identifier: Apache-2.0
"""Names of ServiceEntries with resolution DNS, asked of the node's own resolver now and then.

A name that can't be resolved keeps what it had: what is outside must not fall out of the mesh for a
resolver's moment.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import structlog

from ztunnel.kube.view.service_entry_index import EntryBook
from ztunnel.mesh.address import AddressError, canonical

EVERY = 30.0  # seconds: the TTL of our own answers
SOON = 1.0  # seconds between looks for names that are new
AT_ONCE = 8  # names asked for at a time
MOST = 64  # addresses of a name

Resolve = Callable[[str], Awaitable[tuple[str, ...]]]
log = structlog.get_logger()


async def node_resolver(name: str) -> tuple[str, ...]:
    """A name's addresses as the node sees them. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    addresses = []
    for *_, address in found:
        try:
            addresses.append(canonical(str(address[0])))
        except AddressError:
            continue  # with a scope: means nothing elsewhere
    return tuple(sorted(set(addresses)))[:MOST]


class ServiceEntryResolver:
    """Keeps a book's names resolved; `changed` is called after some are other than before."""

    def __init__(
        self,
        book: EntryBook,
        changed: Callable[[], None],
        resolve: Resolve = node_resolver,
        *,
        every: float = EVERY,
        soon: float = SOON,
    ) -> None:
        self._book = book
        self._changed = changed
        self._resolve = resolve
        self._every = every
        self._soon = soon
        self._due: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.turn(asyncio.get_running_loop().time())
            await asyncio.sleep(self._soon)

    async def turn(self, now: float) -> None:
        """Ask for what is due at `now`, in seconds of any clock."""
        names = self._book.names()
        self._due = {name: self._due.get(name, now) for name in names}
        due = sorted(name for name, when in self._due.items() if when <= now)
        gate = asyncio.Semaphore(AT_ONCE)
        changes = await asyncio.gather(*(self._ask(name, gate) for name in due))
        for name in due:
            self._due[name] = now + self._every
        if any(changes):
            self._changed()

    async def _ask(self, name: str, gate: asyncio.Semaphore) -> bool:
        async with gate:
            try:
                addresses = await self._resolve(name)
            except (OSError, UnicodeError) as error:
                log.warning("name of a ServiceEntry not resolved", name=name, error=str(error))
                return False
        return self._book.resolved(name, addresses)
