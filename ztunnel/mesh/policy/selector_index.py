# SPDX-License-Identifier: Apache-2.0
"""Finds the selections that match a workload without evaluating all of them.

Equal selections share one group. A group is indexed by one label of its selection, so a lookup
evaluates only groups with a label of the workload. Results are cached per workload.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ztunnel.mesh.model import Workload
from ztunnel.mesh.policy.model import Selection

G = TypeVar("G")
_CACHE_SIZE = 4096  # workloads: those of the node, and those of recent queries

_Key = tuple[str, str, frozenset[tuple[str, str]]]  # namespace, uid, labels


class SelectorIndex(Generic[G]):
    """One group, created by `new`, per selection."""

    def __init__(self, new: Callable[[], G]) -> None:
        self._new = new
        self._by_anchor: dict[Hashable, dict[_Key, G]] = {}
        self._cache: dict[str, tuple[Workload, tuple[G, ...]]] = {}

    def group(self, selection: Selection) -> G:
        """Return the group of a selection; create it if absent."""
        key = _key(selection)
        groups = self._by_anchor.setdefault(_anchor(key), {})
        if key not in groups:
            groups[key] = self._new()
            self._cache.clear()
        return groups[key]

    def remove(self, selection: Selection) -> None:
        """Remove the empty group of a selection."""
        key = _key(selection)
        anchor = _anchor(key)
        groups = self._by_anchor.get(anchor, {})
        if groups.pop(key, None) is not None:
            self._cache.clear()
        if not groups:
            self._by_anchor.pop(anchor, None)

    def matching(self, workload: Workload) -> tuple[G, ...]:
        """Return the groups whose selection matches the workload."""
        known = self._cache.get(workload.uid)
        if known is not None and known[0] is workload:
            return known[1]
        found = tuple(self._search(workload))
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        self._cache[workload.uid] = workload, found
        return found

    def _search(self, workload: Workload) -> list[G]:
        labels = frozenset(workload.labels.items())
        anchors: list[tuple[str, tuple[str, str] | None]] = []
        for namespace in ("", workload.namespace):
            anchors.append((namespace, None))
            anchors.extend((namespace, label) for label in labels)
        found = list(self._by_anchor.get(workload.uid, {}).values())
        for anchor in anchors:
            for (_, _, wanted), group in self._by_anchor.get(anchor, {}).items():
                if wanted <= labels:
                    found.append(group)
        return found


def _key(selection: Selection) -> _Key:
    return selection.namespace, selection.uid, frozenset(selection.labels.items())


def _anchor(key: _Key) -> Hashable:
    namespace, uid, labels = key
    return uid or (namespace, min(labels, default=None))
