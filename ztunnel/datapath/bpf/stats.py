# SPDX-License-Identifier: Apache-2.0
"""The kernel's statistics of the programs and maps: runs, run time, occupancy. Read only.

The kernel counts runs only while `enable_run_stats` is in effect, because it reads the clock twice
per run. Layouts: struct bpf_prog_info and bpf_map_info of linux/bpf.h, which are stable.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ztunnel.datapath.bpf import syscall

_RUNS = struct.Struct("=QQ")
_RUNS_OFFSET = 192  # run_time_ns and run_cnt in struct bpf_prog_info
_INFO_BYTES = 256
_MAP_INFO = struct.Struct("=6I16s")  # type, id, key size, value size, max_entries, flags, name
_COUNTED = frozenset({1, 9})  # BPF_MAP_TYPE_HASH, _LRU_HASH: the types that can become full


@dataclass(frozen=True)
class ProgramRuns:
    """Runs of one program since it was loaded, while run statistics were enabled."""

    program: str
    count: int
    seconds: float


@dataclass(frozen=True)
class MapOccupancy:
    """Entries and capacity of a map."""

    name: str
    entries: int
    room: int


def enable_run_stats() -> int:
    """Enable run statistics while the returned descriptor is open. Raises OSError."""
    return syscall.enable_stats()


def program_runs(pin_dir: Path) -> list[ProgramRuns]:
    """The runs of every pinned program."""
    found = []
    for pin in sorted((pin_dir / "progs").glob("*")):
        fd = syscall.open_pinned(pin)
        try:
            nanoseconds, count = _RUNS.unpack_from(
                syscall.object_info(fd, _INFO_BYTES), _RUNS_OFFSET
            )
        finally:
            os.close(fd)
        found.append(ProgramRuns(pin.name, count, nanoseconds / 1e9))
    return found


def map_occupancy(pin_dir: Path) -> list[MapOccupancy]:
    """The occupancy of every pinned hash map. Takes milliseconds per 10,000 entries."""
    found = []
    for pin in sorted((pin_dir / "maps").glob("*")):
        fd = syscall.open_pinned(pin, read_only=True)
        try:
            kind, _, key, value, room, *_ = _MAP_INFO.unpack_from(
                syscall.object_info(fd, _INFO_BYTES)
            )
            if kind in _COUNTED:
                entries = syscall.RawMap(fd, key, value).count()
                found.append(MapOccupancy(pin.name, entries, room))
        finally:
            os.close(fd)
    return found
