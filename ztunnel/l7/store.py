# SPDX-License-Identifier: Apache-2.0
"""All L7 objects, by kind and name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ztunnel.l7.objects import L7Key, L7Object


class L7Store:
    """The L7 objects of a cluster. `revision` grows with each change."""

    def __init__(self) -> None:
        self.revision = 0
        self._by_kind: dict[str, dict[tuple[str, str], L7Object]] = defaultdict(dict)

    def put(self, obj: L7Object) -> None:
        """Add or replace an object."""
        self.revision += 1
        self._by_kind[obj.kind][obj.namespace, obj.name] = obj

    def remove(self, key: L7Key) -> None:
        """Remove an object, if it is known."""
        if self._by_kind[key.kind].pop((key.namespace, key.name), None) is not None:
            self.revision += 1

    def get(self, kind: str, namespace: str, name: str) -> L7Object | None:
        """Return an object, or None."""
        return self._by_kind[kind].get((namespace, name))

    def of_kind(self, kind: str) -> Iterator[L7Object]:
        """Iterate over the objects of a kind, in the order in which they were added."""
        return iter(self._by_kind[kind].values())
