# SPDX-License-Identifier: Apache-2.0
"""All L7 objects, by kind, namespace and name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

from ztunnel.l7.objects import L7Key, L7Object

T = TypeVar("T")


class L7Store:
    """The L7 objects of a cluster. `revision` grows with each change."""

    def __init__(self) -> None:
        self.revision = 0
        self._by_kind: dict[str, dict[tuple[str, str], L7Object]] = defaultdict(dict)
        self._revisions: dict[str, int] = {}
        # Built on demand; removed by a change of the namespace.
        self._by_namespace: dict[tuple[str, str], tuple[L7Object, ...]] = {}
        self._namespaces: dict[str, dict[str, dict[str, L7Object]]] = defaultdict(
            lambda: defaultdict(dict)
        )

    def put(self, obj: L7Object) -> None:
        """Add or replace an object."""
        self._by_kind[obj.kind][obj.namespace, obj.name] = obj
        self._namespaces[obj.kind][obj.namespace][obj.name] = obj
        self._changed(obj.kind, obj.namespace)

    def remove(self, key: L7Key) -> None:
        """Remove an object, if it is known."""
        if self._by_kind[key.kind].pop((key.namespace, key.name), None) is not None:
            del self._namespaces[key.kind][key.namespace][key.name]
            self._changed(key.kind, key.namespace)

    def get(self, kind: str, namespace: str, name: str) -> L7Object | None:
        """Return an object, or None."""
        return self._by_kind[kind].get((namespace, name))

    def of_kind(self, kind: str) -> Iterator[L7Object]:
        """Iterate over the objects of a kind, in the order in which they were added."""
        return iter(self._by_kind[kind].values())

    def of_namespace(self, kind: str, namespace: str) -> tuple[L7Object, ...]:
        """Return the objects of a kind in a namespace: the identical tuple until one changes."""
        found = self._by_namespace.get((kind, namespace))
        if found is None:
            found = tuple(self._namespaces[kind][namespace].values())
            self._by_namespace[kind, namespace] = found
        return found

    def revision_of(self, kind: str) -> int:
        """Return a number that grows with each change of the kind."""
        return self._revisions.get(kind, 0)

    def derived(self, key: Hashable, read: Callable[[L7Store], T]) -> T:
        """Return `read(self)`, which returns the identical object until what it reads has changed.

        `key` identifies it among the derived values of the store.
        """
        return read(self)

    def _changed(self, kind: str, namespace: str) -> None:
        self.revision += 1
        self._revisions[kind] = self.revision
        self._by_namespace.pop((kind, namespace), None)
