# SPDX-License-Identifier: Apache-2.0
"""Limits the writes of status per namespace: a tenant's churn delays only that tenant."""

from __future__ import annotations

import threading
from collections.abc import Callable

RATE_PER_S = 20.0
BURST = 100.0


class NamespaceRate:
    """A token bucket per namespace. Thread-safe; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def delay_s(self, namespace: str) -> float:
        """Take a token: 0 if there is one, else the seconds until there is one."""
        with self._lock:
            now = self._clock()
            tokens, at = self._buckets.get(namespace, (BURST, now))
            tokens = min(BURST, tokens + (now - at) * RATE_PER_S)
            if tokens < 1:
                self._buckets[namespace] = tokens, now
                return (1 - tokens) / RATE_PER_S
            self._buckets[namespace] = tokens - 1, now
            self._drop_full(now)
            return 0.0

    def _drop_full(self, now: float) -> None:
        """Forget namespaces whose bucket is full again, once there are many."""
        if len(self._buckets) > 1000:
            full_s = BURST / RATE_PER_S
            self._buckets = {
                name: bucket for name, bucket in self._buckets.items() if now - bucket[1] < full_s
            }
