# SPDX-License-Identifier: Apache-2.0
"""Processes by their cgroup (v2): each program of the lab has a cgroup of its own.

A program runs if its cgroup contains a process, so no pid file can be stale. `cgroup.kill` kills
all its processes at once.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ztunnel.lab.errors import LabError

_POLL_INTERVAL_S = 0.02
_KILL_TIMEOUT_S = 10.0
_REMOVE_TIMEOUT_S = 5.0


def cgroup2_root() -> Path:
    """The mount point of cgroup v2, which on hybrid systems is not /sys/fs/cgroup."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            return Path(fields.split()[4])
    raise LabError(
        "no cgroup v2 mount in /proc/self/mountinfo; "
        "hint: boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /mnt/cgroup2"
    )


def pids(cgroup: Path) -> list[int]:
    """The processes directly in `cgroup`; empty if it does not exist."""
    try:
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
    except OSError:  # removed in the meantime
        return []


def main_pid(cgroup: Path) -> int | None:
    """The first process of `cgroup`, from which the others descend."""
    return min(pids(cgroup), default=None)


def is_populated(cgroup: Path) -> bool:
    """Whether `cgroup` or a descendant contains a live process."""
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text()
    except OSError:
        return False


def terminate(cgroup: Path, grace_s: float) -> None:
    """Send SIGTERM to all processes below `cgroup`, and SIGKILL after `grace_s` seconds."""
    for directory in _tree(cgroup):
        for pid in pids(directory):
            _signal(pid, signal.SIGTERM)
    if not _wait_until_empty(cgroup, grace_s):
        kill(cgroup)


def kill(cgroup: Path) -> None:
    """Kill all processes below `cgroup` and wait until they have exited. Raises LabError."""
    if not cgroup.exists():
        return
    (cgroup / "cgroup.kill").write_text("1")
    if not _wait_until_empty(cgroup, _KILL_TIMEOUT_S):
        left = [pid for directory in _tree(cgroup) for pid in pids(directory)]
        raise LabError(f"processes {left} in {cgroup} survived SIGKILL; hint: see /proc/PID/stack")


def remove(cgroup: Path) -> None:
    """Kill all processes below `cgroup` and remove it, if it exists. Raises LabError."""
    kill(cgroup)
    deadline = time.monotonic() + _REMOVE_TIMEOUT_S
    for directory in _tree(cgroup):
        while True:
            try:
                directory.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:  # EBUSY shortly after the last exit
                if time.monotonic() > deadline:
                    raise LabError(f"cannot remove cgroup {directory}: {error}") from error
                time.sleep(_POLL_INTERVAL_S)


def _tree(cgroup: Path) -> list[Path]:
    """`cgroup` and its descendants, deepest first."""
    return [Path(path) for path, _, _ in os.walk(cgroup, topdown=False)]


def _wait_until_empty(cgroup: Path, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while is_populated(cgroup):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
