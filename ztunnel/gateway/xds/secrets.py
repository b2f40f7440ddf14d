# SPDX-License-Identifier: Apache-2.0
"""Secrets of a delta ADS stream: names of files with certificates, never their content. Pure.

    sent --ACK--> Envoy has read the files, and reads them again when the directory changes
      | NACK: a file does not exist yet
      v
    rejected --after RETRY_S--> sent again, alone

The kubelet mounts the files of a new certificate some time after the nodes learn of it.

Envoy remembers a secret before it reads the files, and accepts an equal one without reading them.
Each response therefore has another spelling of the watched directory.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Container, Iterator
from dataclasses import replace

from ztunnel.gateway.xds import wire
from ztunnel.gateway.xds.resources import Resource
from ztunnel.gateway.xds.subscription import Batch, Memory, Subscription

RETRY_S = 1.0
_SPELLING_BITS = 24  # a restarted process must not repeat a spelling
_WATCHED_DIRECTORY_PATH = 1  # number of WatchedDirectory.path

_spellings = itertools.count(random.getrandbits(_SPELLING_BITS))


class SecretSubscription(Subscription):
    """State of the type Secret. Call `start_retries` before `next_batch`."""

    def __init__(self, memory: Memory | None = None) -> None:
        super().__init__(memory)
        self.retry_at: float | None = None  # None: nothing is rejected
        self.was_repaired = False  # by the last answer
        self._due: set[str] = set()

    def start_retries(self, now: float) -> None:
        """Let rejected secrets be sent again, RETRY_S after the last time."""
        rejected = {each.name for each in self.rejected()} & self._names
        if not rejected:
            self.retry_at = None
        elif self.retry_at is None:
            self.retry_at = now + RETRY_S
        elif now >= self.retry_at:
            self.retry_at = now + RETRY_S
            self._alone.extend({name} for name in sorted(rejected - self._due))
            self._due |= rejected

    def next_batch(
        self, *, upserts: bool, removals: bool, kept: Container[str] = ()
    ) -> Batch | None:
        """The next response, in a new spelling."""
        batch = super().next_batch(upserts=upserts, removals=removals, kept=kept)
        if batch is not None:
            self._due -= batch.resources.keys()
            batch.resources = {name: _respelled(each) for name, each in batch.resources.items()}
        return batch

    def acknowledge(self, nonce: str) -> Batch | None:
        """Envoy has read the files of the batch. `was_repaired`: of one it had rejected."""
        rejected = set(self.memory.rejections)
        batch = super().acknowledge(nonce)
        self.was_repaired = batch is not None and bool(rejected & batch.resources.keys())
        return batch

    def pending(self) -> Iterator[str]:
        """Also what is to be sent again."""
        found = set(super().pending())
        yield from found
        yield from (self._due & self.wanted.keys()) - found


def _respelled(secret: Resource) -> Resource:
    """The same secret in an encoding that was not used before, with the same version."""
    if secret.watched is None:
        return secret
    field, number, path = secret.watched
    token = next(_spellings) % (1 << _SPELLING_BITS)
    spelled = path + "".join("//" if token >> bit & 1 else "/." for bit in range(_SPELLING_BITS))
    watched = wire.field(number, wire.text(_WATCHED_DIRECTORY_PATH, spelled))
    # Fields of a message that occurs twice are merged: the last path applies.
    head = secret.head + wire.field(field, watched)
    return replace(secret, head=head, pinned_version=secret.version)
