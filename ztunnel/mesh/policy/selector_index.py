# SPDX-License-Identifier: Apache-2.0
"""Which of many selections take a workload, without looking at all of them.

Equal selections share one group. A group is found by one label of its selection, so a workload
costs its labels and the groups that have one of them, once; then it is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ztunnel.mesh.model import Workload
from ztunnel.mesh.policy.model import Selection

G = TypeVar("G")
_REMEMBERED = 4096  # workloads: those of a node, and what people asked for

_Key = tuple[str, str, frozenset[tuple[str, str]]]  # namespace, uid, labels


class Groups(Generic[G]):
    """A group of `new()` per selection."""

    def __init__(self, new: Callable[[], G]) -> None:
        self._new = new
        self._anchored: dict[Hashable, dict[_Key, G]] = {}
        self._found: dict[str, tuple[Workload, tuple[G, ...]]] = {}

    def at(self, selection: Selection) -> G:
        """The group of a selection, made when there is none."""
        key = _key(selection)
        groups = self._anchored.setdefault(_anchor(key), {})
        if key not in groups:
            groups[key] = self._new()
            self._found.clear()
        return groups[key]

    def forget(self, selection: Selection) -> None:
        """Remove the group of a selection: nothing is in it any more."""
        key = _key(selection)
        anchor = _anchor(key)
        groups = self._anchored.get(anchor, {})
        if groups.pop(key, None) is not None:
            self._found.clear()
        if not groups:
            self._anchored.pop(anchor, None)

    def of(self, workload: Workload) -> tuple[G, ...]:
        """The groups whose selection takes the workload."""
        known = self._found.get(workload.uid)
        if known is not None and known[0] is workload:
            return known[1]
        found = tuple(self._search(workload))
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[workload.uid] = workload, found
        return found

    def _search(self, workload: Workload) -> list[G]:
        labels = frozenset(workload.labels.items())
        places: list[tuple[str, tuple[str, str] | None]] = []
        for namespace in ("", workload.namespace):
            places.append((namespace, None))
            places.extend((namespace, label) for label in labels)
        found = list(self._anchored.get(workload.uid, {}).values())
        for place in places:
            for (_, _, wanted), group in self._anchored.get(place, {}).items():
                if wanted <= labels:
                    found.append(group)
        return found


def _key(selection: Selection) -> _Key:
    return selection.namespace, selection.uid, frozenset(selection.labels.items())


def _anchor(key: _Key) -> Hashable:
    namespace, uid, labels = key
    return uid or (namespace, min(labels, default=None))
