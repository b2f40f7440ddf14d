# SPDX-License-Identifier: Apache-2.0
"""Limits the writes of status per namespace: a tenant's churn delays only that tenant."""

from __future__ import annotations

import threading
from collections.abc import Callable

RATE_PER_S = 50.0
BURST = 100
_INTERVAL_S = 1 / RATE_PER_S
_MAX_IDLE = 1000  # namespaces that are remembered although they may write at once


class NamespaceRate:
    """Slots in time, per namespace (the generic cell rate algorithm, ITU-T I.371).

    Thread-safe; `clock` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}  # when all reserved writes would be over without bursts

    def reserve_s(self, namespace: str) -> float:
        """Reserve the next slot; returns in how many seconds it is: 0 for at once."""
        with self._lock:
            now = self._clock()
            end = max(self._ends.get(namespace, now), now) + _INTERVAL_S
            self._ends[namespace] = end
            if len(self._ends) > _MAX_IDLE:
                self._ends = {name: at for name, at in self._ends.items() if at > now}
            return max(0.0, end - now - BURST * _INTERVAL_S)
