# SPDX-License-Identifier: Apache-2.0
"""A dict that can say what changed since it was last asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class TrackedMap(Generic[T]):
    """Values by name. What came and went again, or is as it was, is no change.

    Iteration and `drain` go by when a value was last set, so that of two claims to one address
    the later one comes later, in a snapshot as in a delta.
    """

    def __init__(self) -> None:
        self._values: dict[str, T] = {}
        self._before: dict[str, T | None] = {}  # of what was touched since the last drain

    def get(self, name: str) -> T | None:
        """The value now."""
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
        """The values that are new or changed, and the names of what is gone."""
        changed, removed = [], []
        for name, before in self._before.items():
            now = self._values.get(name)
            if now is None and before is not None:
                removed.append(name)
            elif now is not None and now != before:
                changed.append(now)
        self._before.clear()
        return tuple(changed), tuple(removed)
