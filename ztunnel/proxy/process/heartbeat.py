# SPDX-License-Identifier: Apache-2.0
"""Signs of life that workers leave where their supervisor sees them: memory that both have.

A worker writes when its loop turns, so one that hangs, or is stopped, falls silent. What a worker
writes is believed only as far as it concerns itself.
"""

from __future__ import annotations

import mmap
import struct
import time
from enum import IntEnum

_SLOT = struct.Struct("=dB7x")  # monotonic seconds of the last turn, and the state


class State(IntEnum):
    """How far a worker is."""

    STARTING = 0  # it has no complete view of the mesh yet
    SERVING = 1
    DRAINING = 2


class HeartbeatTable:
    """One slot for each of `count` workers; made before they are forked."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * _SLOT.size)  # anonymous and shared

    def beat(self, index: int, state: State) -> None:
        """The worker's loop turned."""
        _SLOT.pack_into(self._memory, index * _SLOT.size, time.monotonic(), state)

    def age(self, index: int) -> float:
        """Seconds since its last beat."""
        when, _ = _SLOT.unpack_from(self._memory, index * _SLOT.size)
        return max(0.0, time.monotonic() - float(when))

    def state(self, index: int) -> State:
        """What it said then; one that says nonsense is starting."""
        _, state = _SLOT.unpack_from(self._memory, index * _SLOT.size)
        return State(state) if state in iter(State) else State.STARTING
