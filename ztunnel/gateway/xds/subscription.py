# SPDX-License-Identifier: Apache-2.0
"""One resource type of a delta ADS stream: what Envoy subscribes to, has, and rejected. Pure.

    resource differs from what Envoy has --> pending --sent--> in flight --ACK--> Envoy has it
                                                                  | NACK
                                                                  v
                                            several: halves of them are sent one after the other
                                            one: its parts are bisected, or it is rejected until
                                                 it changes

One response is in flight at a time, so that a NACK concerns known resources. Envoy keeps the last
version that it accepted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ztunnel.gateway.xds.parts import Part, PartIsolation, without
from ztunnel.gateway.xds.resources import Resource

MAX_RESPONSE_BYTES = 4 << 20  # of resources, beyond the first one
MAX_NAMES = 100_000  # subscribed names of a type; a client with more is disconnected
ABSENT = ""  # the version of a resource that does not exist
WILDCARD = "*"


class ProtocolError(ValueError):
    """The client violates the protocol or its bounds; close the stream."""


@dataclass(frozen=True)
class Rejection:
    """A version that Envoy rejected. `part`: the part of the resource, if only this is invalid."""

    name: str
    version: str
    message: str
    part: str = ""


@dataclass
class Batch:
    """The resources of one response."""

    nonce: str = ""
    resources: dict[str, Resource] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.resources or self.removed)


@dataclass
class Memory:
    """What is known of an Envoy beyond a stream: it reconnects with what it has."""

    accepted: dict[str, Resource] = field(default_factory=dict)  # the last version of each
    rejections: dict[str, Rejection] = field(default_factory=dict)  # of whole resources
    invalid_parts: dict[tuple[str, Part], str] = field(default_factory=dict)  # Envoy's messages


class Subscription:
    """State of one type; `wanted` are the resources that Envoy is to have."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.wanted: Mapping[str, Resource] = {}
        self.is_open = False  # the client has requested the type
        self.flight: Batch | None = None
        self.memory = memory or Memory()
        self._is_wildcard = False
        self._must_reply = False  # Envoy waits for a first response, even for an empty one
        self._names: set[str] = set()
        self._known: dict[str, str] = {}  # versions that Envoy has, by name
        self._unsure: set[str] = set()  # of rejected responses: Envoy may have applied them
        self._alone: deque[set[str]] = deque()  # groups to send one by one
        self._removal_failed: set[str] = set()
        self._isolation: dict[str, PartIsolation] = {}

    # Requests

    def subscribe(self, names: Iterable[str], versions: Mapping[str, str]) -> None:
        """Handle the names of a request; `versions`: what the client has (first request only)."""
        requested = list(names)
        if not self.is_open:
            self.is_open = True
            self._is_wildcard = not requested
            self._known.update(versions)
            self._must_reply = self._is_wildcard and not versions
            self.memory.accepted = {
                name: each
                for name, each in self.memory.accepted.items()
                if versions.get(name) == each.version
            }
        for name in requested:
            if name == WILDCARD:
                self._must_reply |= not self._is_wildcard and not versions
                self._is_wildcard = True
                continue
            self._names.add(name)
            if name not in versions:  # to be sent again, even if it was sent before
                self._known.pop(name, None)
        if len(self._names) > MAX_NAMES or len(self._known) > MAX_NAMES:
            raise ProtocolError(f"more than {MAX_NAMES} names")

    def unsubscribe(self, names: Iterable[str]) -> None:
        """The client no longer needs these."""
        for name in names:
            if name == WILDCARD:
                self._is_wildcard = False
                continue
            self._names.discard(name)
            if not self._is_wildcard:
                self._known.pop(name, None)
                self.memory.accepted.pop(name, None)

    def acknowledge(self, nonce: str) -> Batch | None:
        """The client accepted a response; returns it. None if the nonce is an old one."""
        batch = self._landed(nonce)
        if batch is None:
            return None
        for name, resource in batch.resources.items():
            self._known[name] = resource.version
            self.memory.accepted[name] = resource
            self._unsure.discard(name)
            self.memory.rejections.pop(name, None)
            self._advance(name, resource, None)
        for name in batch.removed:
            self._known.pop(name, None)
            self.memory.accepted.pop(name, None)
            self._unsure.discard(name)
            if name in self._names and name not in self.wanted:
                self._known[name] = ABSENT
        return batch

    def reject(self, nonce: str, message: str) -> Batch | None:
        """The client rejected a response; returns it. None if the nonce is an old one."""
        batch = self._landed(nonce)
        if batch is None:
            return None
        self._unsure.update(batch.resources)
        names = sorted(batch.resources)
        if batch.removed and names:
            self._alone.appendleft(set(batch.removed))
        elif batch.removed:  # a removal cannot be invalid: do not repeat it
            self._removal_failed |= batch.removed
        if len(names) == 1:
            self._advance(names[0], batch.resources[names[0]], message)
        elif names:
            middle = len(names) // 2
            self._alone.extendleft((set(names[middle:]), set(names[:middle])))
        return batch

    # Responses

    def next_batch(
        self, *, upserts: bool, removals: bool, kept: Container[str] = ()
    ) -> Batch | None:
        """The next response, if the type has one and none is in flight.

        `kept`: resources that no longer exist, but are not removed yet.
        """
        if not self.is_open or self.flight is not None:
            return None
        names = set(self.pending()) if upserts else set()
        gone = {name for name in self.removable() if name not in kept} if removals else set()
        gone |= set(self.absent()) if upserts else set()
        while self._alone and not self._alone[0] & (names | gone):
            if not upserts:
                break
            self._alone.popleft()
        if self._alone:
            names, gone = names & self._alone[0], gone & self._alone[0]
            if names or gone:
                self._alone.popleft()
        batch = Batch(removed=gone)
        size = 0
        for name in sorted(names):
            resource = self._target(name)
            size += resource.size
            if batch.resources and size > MAX_RESPONSE_BYTES:
                break
            batch.resources[name] = resource
        if not batch and not (self._must_reply and upserts):
            return None
        self._must_reply = False
        self.flight = batch
        return batch

    def pending(self) -> Iterator[str]:
        """The names of resources that Envoy lacks or has in another version."""
        for name, resource in self.wanted.items():
            if not self._is_wildcard and name not in self._names:
                continue
            known = self._known.get(name)
            if known == resource.version and name not in self._isolation:
                continue
            rejection = self.memory.rejections.get(name)
            if rejection is not None and rejection.version == resource.version:
                continue
            if name in self._isolation or known != self._target(name).version:
                yield name

    def removable(self) -> Iterator[str]:
        """The names of resources that no longer exist.

        Envoy keeps endpoints and routes, which it requests by name, until it needs them no longer,
        and logs an error if they are removed earlier.
        """
        if not self._is_wildcard:
            return
        for name in self._known.keys() | self._unsure:
            if name in self.wanted or self._known.get(name) == ABSENT:
                continue
            if name not in self._removal_failed:
                yield name

    def absent(self) -> Iterator[str]:
        """The names of requested resources that do not exist: Envoy waits for an answer."""
        for name in self._names:
            if not (name in self.wanted or name in self._known or name in self._unsure):
                yield name

    def has_work(self) -> bool:
        """Whether resources wait to be sent or acknowledged; without removals."""
        if not self.is_open:
            return False
        if self.flight is not None:
            return True
        return any(True for _ in self.pending()) or any(True for _ in self.absent())

    def forget(self, name: str) -> None:
        """Send a resource again, if Envoy subscribes to it."""
        self._known.pop(name, None)

    def forget_rejections(self) -> None:
        """Send what Envoy rejected again: what it depends on has changed."""
        self.memory.rejections.clear()
        self.memory.invalid_parts.clear()

    def has(self, name: str) -> bool:
        """Whether Envoy has the resource, in any version."""
        return name in self._known

    def version(self, name: str) -> str | None:
        """The version that Envoy has."""
        return self._known.get(name)

    def rejected(self) -> Iterator[Rejection]:
        """What of the wanted resources Envoy rejects."""
        for name, rejection in self.memory.rejections.items():
            wanted = self.wanted.get(name)
            if wanted is not None and wanted.version == rejection.version:
                yield rejection
        for (name, (part, content)), message in self.memory.invalid_parts.items():
            wanted = self.wanted.get(name)
            if wanted is not None and wanted.parts.get(part) == content:
                yield Rejection(name, wanted.version, message, part)

    def set_wanted(self, wanted: Mapping[str, Resource]) -> None:
        """Replace the resources."""
        self.wanted = wanted
        self._removal_failed.clear()
        for name, isolation in list(self._isolation.items()):
            now = wanted.get(name)
            if now is None or now.version != isolation.origin:
                del self._isolation[name]
        self.memory.invalid_parts = {
            (name, part): message
            for (name, part), message in self.memory.invalid_parts.items()
            if name in wanted and wanted[name].parts.get(part[0]) == part[1]
        }
        self.memory.rejections = {
            name: each for name, each in self.memory.rejections.items() if name in wanted
        }

    # One resource

    def _landed(self, nonce: str) -> Batch | None:
        batch = self.flight
        if batch is None or batch.nonce != nonce:
            return None
        self.flight = None
        return batch

    def _target(self, name: str) -> Resource:
        """What to send: a candidate of an isolation, or the resource without invalid parts."""
        isolation = self._isolation.get(name)
        if isolation is not None:
            return isolation.candidate()
        wanted = self.wanted[name]
        invalid = {
            part
            for owner, (part, content) in self.memory.invalid_parts
            if owner == name and wanted.parts.get(part) == content
        }
        return without(wanted, self._accepted(wanted), invalid)

    def _accepted(self, wanted: Resource) -> Resource | None:
        """What Envoy has of a resource; after a restart, only parts that are wanted are known."""
        known = self.memory.accepted.get(wanted.name)
        return known or wanted.with_parts_of(self._known.get(wanted.name, ""))

    def _advance(self, name: str, sent: Resource, message: str | None) -> None:
        """Continue the isolation of a resource; `message` is None if Envoy accepted it."""
        wanted = self.wanted.get(name)
        if wanted is None or sent.version != self._target(name).version:
            return  # an answer about what is no longer wanted
        isolation = self._isolation.get(name)
        if isolation is None:
            if message is None:
                return
            if not wanted.parts:
                self.memory.rejections[name] = Rejection(name, wanted.version, message)
                return
            isolation = PartIsolation(wanted.version, sent, self._accepted(wanted))
            self._isolation[name] = isolation
            self._skip_known(name, isolation)
            if isolation.candidate().version != sent.version:
                return
        if message is None:
            isolation.accept()
        elif not isolation.reject(message):
            self.memory.rejections[name] = Rejection(name, wanted.version, message)
            del self._isolation[name]
            return
        self._skip_known(name, isolation)
        if isolation.is_done:
            del self._isolation[name]
            for part, text in isolation.invalid.items():
                self.memory.invalid_parts[name, (part, wanted.parts[part])] = text

    def _skip_known(self, name: str, isolation: PartIsolation) -> None:
        """Skip candidates that equal what Envoy has."""
        while not isolation.is_done and isolation.candidate().version == self._known.get(name):
            isolation.accept()
