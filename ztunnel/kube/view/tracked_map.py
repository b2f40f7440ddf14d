# SPDX-License-Identifier: Apache-2.0
"""A map that tracks its changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class TrackedMap(Generic[T]):
    """Values by name. A value that was added and removed, or set back, has not changed.

    Iteration and `drain` are in the order in which values were last set: if two workloads claim an
    address, the later claim is last in a snapshot as well as in a delta.
    """

    def __init__(self) -> None:
        self._values: dict[str, T] = {}
        self._before: dict[str, T | None] = {}  # values at the last drain

    def get(self, name: str) -> T | None:
        """The current value."""
        return self._values.get(name)

    def __iter__(self) -> Iterator[T]:
        return iter(self._values.values())

    def put(self, name: str, value: T | None) -> None:
        """Set a value; None removes it."""
        old = self._values.get(name)
        if old == value:
            return
        self._values.pop(name, None)
        if value is not None:
            self._values[name] = value
        self._before[name] = self._before.pop(name) if name in self._before else old

    def drain(self) -> tuple[tuple[T, ...], tuple[str, ...]]:
        """The values that changed since the last drain, and the names of removed ones."""
        changed, removed = [], []
        for name, before in self._before.items():
            now = self._values.get(name)
            if now is None and before is not None:
                removed.append(name)
            elif now is not None and now != before:
                changed.append(now)
        self._before.clear()
        return tuple(changed), tuple(removed)
