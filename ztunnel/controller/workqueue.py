# SPDX-License-Identifier: Apache-2.0
"""Names of things to look at, each handled by one thread at a time and tried again on failure.

    add --> due --get--> in hand --done--> gone (or due again, if it was added meanwhile)
             ^              |
             +--- retry ----+  later each time

What is added twice before it is taken is handled once: handlers read the present state anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

FIRST_DELAY = 0.2  # seconds before a failed item is tried again
LONGEST_DELAY = 30.0

Item = TypeVar("Item", bound=Hashable)


class Work(Generic[Item]):
    """Thread-safe. `clock` counts seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._due: dict[Item, float] = {}
        self._in_hand: set[Item] = set()
        self._failures: dict[Item, int] = {}
        self._closed = False

    def add(self, item: Item, after: float = 0.0) -> None:
        """Have an item handled in `after` seconds; sooner, if it was to be sooner already."""
        with self._changed:
            at = self._clock() + after
            self._due[item] = min(at, self._due.get(item, at))
            self._changed.notify()

    def get(self) -> Item | None:
        """The next item, waited for; None once it is closed. Call `done` or `retry` with it."""
        with self._changed:
            while not self._closed:
                ready = {item: at for item, at in self._due.items() if item not in self._in_hand}
                first = min(ready, key=ready.__getitem__, default=None)
                left = None if first is None else ready[first] - self._clock()
                if first is not None and left is not None and left <= 0:
                    del self._due[first]
                    self._in_hand.add(first)
                    return first
                self._changed.wait(left)
            return None

    def done(self, item: Item) -> None:
        """It was handled."""
        with self._changed:
            self._failures.pop(item, None)
            self._in_hand.discard(item)
            self._changed.notify()

    def retry(self, item: Item) -> float:
        """It failed: have it handled again; returns in how many seconds."""
        with self._changed:
            count = self._failures[item] = self._failures.get(item, -1) + 1
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(count, 16))
            self._in_hand.discard(item)
            at = self._clock() + delay
            self._due[item] = min(at, self._due.get(item, at))
            self._changed.notify()
            return delay

    def close(self) -> None:
        """Whoever waits in `get` gets None, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
