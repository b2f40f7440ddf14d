# SPDX-License-Identifier: Apache-2.0
"""Results that are computed again only if something that they read has changed.

A computation gets Inputs that record its reads. Objects are immutable and replaced as a whole, so
a result is valid while every read returns the identical object.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import Service, Workload
from ztunnel.mesh.state import MeshState

S = TypeVar("S")
T = TypeVar("T")
_RESOURCE_KEYS = frozenset(("name", "cluster_name"))  # a resource is replaced as a whole
_Read = Callable[[Inputs], object]
Reads = dict[Hashable, tuple[_Read, object]]


class TrackedStore(L7Store):
    """A view of a store that records what is read."""

    def __init__(self, store: L7Store, reads: Reads) -> None:
        self._store = store
        self._reads = reads

    def get(self, kind: str, namespace: str, name: str) -> L7Object | None:
        """Return an object, or None."""
        found = self._store.get(kind, namespace, name)
        self._reads[kind, namespace, name] = (lambda i: i.store.get(kind, namespace, name), found)
        return found

    def of_kind(self, kind: str) -> Iterator[L7Object]:
        """Iterate over the objects of a kind; any change of the kind is a change of this read."""
        self.revision_of(kind)
        return self._store.of_kind(kind)

    def of_namespace(self, kind: str, namespace: str) -> tuple[L7Object, ...]:
        """Return the objects of a kind in a namespace."""
        found = self._store.of_namespace(kind, namespace)
        self._reads[kind, namespace] = (lambda i: i.store.of_namespace(kind, namespace), found)
        return found

    def derived(self, key: Hashable, read: Callable[[L7Store], S]) -> S:
        """Return a derived value: a change is one of the value, not of all that it is read from."""
        found = read(self._store)
        self._reads["derived", key] = (lambda i: read(i.store), found)
        return found

    def revision_of(self, kind: str) -> int:
        """Return a number that changes with each change of the kind."""
        found = self._store.revision_of(kind)
        self._reads[kind] = (lambda i: i.store.revision_of(kind), found)
        return found


class TrackedMesh(MeshState):
    """A view of the mesh that records what is read; what it cannot record, it does not offer."""

    def __init__(self, mesh: MeshState, reads: Reads) -> None:
        self._mesh = mesh
        self._reads = reads

    def workload(self, uid: str) -> Workload | None:
        """Return a workload by its mesh-wide uid."""
        found = self._mesh.workload(uid)
        self._reads["uid", uid] = (lambda i: i.mesh.workload(uid), found)
        return found

    def workload_at(self, ip: str) -> Workload | None:
        """Return the workload that owns an address."""
        found = self._mesh.workload_at(ip)
        self._reads["ip", ip] = (lambda i: i.mesh.workload_at(ip), found)
        return found

    def service(self, key: str) -> Service | None:
        """Return a service by `namespace/name`."""
        found = self._mesh.service(key)
        self._reads["service", key] = (lambda i: i.mesh.service(key), found)
        return found

    def service_at(self, ip: str, namespace: str = "") -> Service | None:
        """Return the service of a virtual address, as visible to a namespace."""
        found = self._mesh.service_at(ip, namespace)
        self._reads["vip", ip, namespace] = (lambda i: i.mesh.service_at(ip, namespace), found)
        return found

    def service_by_hostname(self, hostname: str, namespace: str = "") -> Service | None:
        """Return the service of a DNS name, as visible to a namespace."""
        found = self._mesh.service_by_hostname(hostname, namespace)
        key = ("hostname", hostname, namespace)
        self._reads[key] = (lambda i: i.mesh.service_by_hostname(hostname, namespace), found)
        return found

    def service_by_name(self, name: str) -> Service | None:
        """Return a service by full DNS name, or by `namespace/name`."""
        found = self._mesh.service_by_name(name)
        self._reads["name", name] = (lambda i: i.mesh.service_by_name(name), found)
        return found

    def workloads(self) -> Iterator[Workload]:
        """Iterate over all workloads. A result that does so is computed every time."""
        self._reads["workloads"] = (lambda _: object(), None)
        return self._mesh.workloads()

    def services(self) -> Iterator[Service]:
        """Iterate over all services. A result that does so is computed every time."""
        self._reads["services"] = (lambda _: object(), None)
        return self._mesh.services()


@dataclass(slots=True)
class _Entry(Generic[T]):
    value: T
    reads: Reads
    extra: tuple[object, ...]
    round: int


class Memo(Generic[T]):
    """Values by key. Values that are not used in a round are dropped at its end."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry[T]] = {}
        self._round = 0
        self.computed = 0  # in the current round

    def start(self) -> None:
        """Begin a round."""
        self._round += 1
        self.computed = 0

    def get(
        self,
        key: Hashable,
        inputs: Inputs,
        compute: Callable[[Inputs], T],
        extra: tuple[object, ...] = (),
    ) -> T:
        """Return the value; `extra` are further objects that it depends on, by identity.

        Parts of a new value that equal the old ones are replaced by them, so that consumers see
        no change.
        """
        entry = self._entries.get(key)
        if entry is not None and _same(entry.extra, extra) and _is_valid(entry.reads, inputs):
            entry.round = self._round
            return entry.value
        reads: Reads = {}
        tracked = Inputs(
            TrackedStore(inputs.store, reads), TrackedMesh(inputs.mesh, reads), inputs.settings
        )
        value = compute(tracked)
        self.computed += 1
        if entry is not None:
            value = _reuse(entry.value, value)
        self._entries[key] = _Entry(value, reads, extra, self._round)
        return value

    def finish(self) -> None:
        """End a round."""
        unused = [key for key, entry in self._entries.items() if entry.round != self._round]
        for key in unused:
            del self._entries[key]


def _reuse(old: Any, new: Any) -> Any:
    """Return `new` with equal parts of `old`: fields of dataclasses, and values of dicts."""
    if old == new:
        return old
    if type(old) is not type(new):
        return new
    if is_dataclass(new) and not isinstance(new, type):
        names = [field.name for field in fields(new)]
        return replace(new, **{n: _reuse(getattr(old, n), getattr(new, n)) for n in names})
    if isinstance(new, dict) and not new.keys() & _RESOURCE_KEYS:
        return {key: _reuse(old[key], value) if key in old else value for key, value in new.items()}
    if isinstance(new, tuple) and len(old) == len(new) and type(new) is tuple:
        return tuple(_reuse(a, b) for a, b in zip(old, new, strict=True))
    return new


def _same(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))


def _is_valid(reads: Reads, inputs: Inputs) -> bool:
    for read, seen in reads.values():
        now = read(inputs)
        if now is not seen and not (isinstance(now, int) and now == seen):
            return False
    return True
