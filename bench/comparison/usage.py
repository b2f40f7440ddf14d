# SPDX-License-Identifier: Apache-2.0
"""Resource usage of processes, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of the processes with all their threads, so far.

    From schedstat, in nanoseconds, where the kernel has it; /proc/PID/stat counts in ticks of
    10 ms, too coarse for a measurement of one second.
    """
    return sum(map(_process_seconds, pids))


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of the processes; shared pages count for each of them."""
    pages = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> tuple[int, ...]:
    """The running children of a single-threaded process."""
    return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _process_seconds(pid: int) -> float:
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int(task.read_text().split()[0])
    return total / 1e9 if total else _stat_seconds(pid)


def _stat_seconds(pid: int) -> float:
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    user, system = after_name[11:13]  # fields 14 and 15 of proc(5)
    return (int(user) + int(system)) / _TICK
