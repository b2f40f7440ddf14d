# SPDX-License-Identifier: Apache-2.0
"""A queue of items to reconcile, like client-go's rate-limited workqueue.

    add ──▶ due ──get──▶ in progress ──done──▶ gone (or due again, if it was added meanwhile)
             ▲               │
             └──── retry ────┘  with exponential backoff

An item is processed by one thread at a time. Adding an item that is due changes nothing: reconcile
functions read the current state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

MIN_BACKOFF_S = 0.2
MAX_BACKOFF_S = 30.0

Item = TypeVar("Item", bound=Hashable)


class WorkQueue(Generic[Item]):
    """Thread-safe. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._due: dict[Item, float] = {}
        self._in_progress: set[Item] = set()
        self._failures: dict[Item, int] = {}
        self._is_closed = False

    def add(self, item: Item, after_s: float = 0.0) -> None:
        """Make an item due; of several due times the earliest counts."""
        with self._changed:
            self._add(item, after_s)

    def get(self) -> Item | None:
        """Wait for the next item; None once the queue is closed. Call `done` or `retry` next."""
        with self._changed:
            while not self._is_closed:
                busy = self._in_progress
                ready = {item: at for item, at in self._due.items() if item not in busy}
                first = min(ready, key=ready.__getitem__, default=None)
                wait_s = None if first is None else ready[first] - self._clock()
                if first is not None and wait_s is not None and wait_s <= 0:
                    del self._due[first]
                    self._in_progress.add(first)
                    return first
                self._changed.wait(wait_s)
            return None

    def done(self, item: Item) -> None:
        """Report success."""
        with self._changed:
            self._failures.pop(item, None)
            self._in_progress.discard(item)
            self._changed.notify()

    def retry(self, item: Item) -> float:
        """Report failure: the item is due again after the returned number of seconds."""
        with self._changed:
            count = self._failures[item] = self._failures.get(item, -1) + 1
            backoff_s = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** min(count, 16))
            self._in_progress.discard(item)
            self._add(item, backoff_s)
            return backoff_s

    def close(self) -> None:
        """`get` returns None from now on, in waiting threads too."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _add(self, item: Item, after_s: float) -> None:
        at = self._clock() + after_s
        self._due[item] = min(at, self._due.get(item, at))
        self._changed.notify()
