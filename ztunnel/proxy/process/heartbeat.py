# SPDX-License-Identifier: Apache-2.0
"""Heartbeats of the workers, in memory that they share with their supervisor.

A worker writes its heartbeat from its event loop, so a worker that hangs or is stopped misses it.
The supervisor trusts a slot only for what concerns the worker that owns it.
"""

from __future__ import annotations

import mmap
import struct
import time
from enum import IntEnum

_SLOT = struct.Struct("=dB7x")  # CLOCK_MONOTONIC of the last heartbeat in seconds, WorkerState


class WorkerState(IntEnum):
    """STARTING --first complete mesh snapshot--> SERVING --SIGTERM--> DRAINING"""

    STARTING = 0
    SERVING = 1
    DRAINING = 2


class HeartbeatTable:
    """One slot for each of `count` workers. Create it before the workers are forked."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * _SLOT.size)  # anonymous, shared

    def beat(self, index: int, state: WorkerState) -> None:
        """Record a heartbeat."""
        _SLOT.pack_into(self._memory, index * _SLOT.size, time.monotonic(), state)

    def age(self, index: int) -> float:
        """Seconds since the last heartbeat."""
        when, _ = _SLOT.unpack_from(self._memory, index * _SLOT.size)
        return max(0.0, time.monotonic() - float(when))

    def state(self, index: int) -> WorkerState:
        """The state at the last heartbeat. Unknown values are treated as STARTING."""
        _, state = _SLOT.unpack_from(self._memory, index * _SLOT.size)
        return WorkerState(state) if state in iter(WorkerState) else WorkerState.STARTING
