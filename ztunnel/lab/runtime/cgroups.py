# SPDX-License-Identifier: Apache-2.0
"""cgroup v2 as the lab's process table: a process is known by the cgroup it was started in.

So no pid file can lie: whether something runs is whether its cgroup holds a process, and to end
all of it is one write to `cgroup.kill`.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ztunnel.lab.errors import LabError

_POLL = 0.02  # seconds


def cgroup2_root() -> Path:
    """Where cgroup v2 is mounted: not always /sys/fs/cgroup (hybrid systems)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            return Path(fields.split()[4])
    raise LabError(
        "no cgroup v2 is mounted (looked in /proc/self/mountinfo); "
        "mend: boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /mnt/cgroup2"
    )


def pids(cgroup: Path) -> list[int]:
    """The processes directly in `cgroup`; none when it does not exist."""
    try:
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
    except OSError:  # it vanished, or is being removed
        return []


def main_pid(cgroup: Path) -> int | None:
    """The first process of `cgroup`: the one that was started in it."""
    return min(pids(cgroup), default=None)


def populated(cgroup: Path) -> bool:
    """Whether a live process is in `cgroup` or below it."""
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text()
    except OSError:
        return False


def terminate(cgroup: Path, grace: float) -> None:
    """SIGTERM to all processes below `cgroup`, SIGKILL to what is left after `grace` seconds."""
    for directory in _tree(cgroup):
        for pid in pids(directory):
            _signal(pid, signal.SIGTERM)
    if not _wait_empty(cgroup, grace):
        kill(cgroup)


def kill(cgroup: Path) -> None:
    """SIGKILL all processes below `cgroup` and wait until they are gone."""
    if not cgroup.exists():
        return
    (cgroup / "cgroup.kill").write_text("1")
    if not _wait_empty(cgroup, 10):
        left = [pid for directory in _tree(cgroup) for pid in pids(directory)]
        raise LabError(f"processes {left} in {cgroup} survived SIGKILL; see /proc/PID/stack")


def remove(cgroup: Path) -> None:
    """End everything below `cgroup` and remove it; nothing happens when it does not exist."""
    kill(cgroup)
    deadline = time.monotonic() + 5
    for directory in _tree(cgroup):
        while True:
            try:
                directory.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:  # EBUSY for a moment after the last exit
                if time.monotonic() > deadline:
                    raise LabError(f"could not remove cgroup {directory}: {error}") from error
                time.sleep(_POLL)


def _tree(cgroup: Path) -> list[Path]:
    """`cgroup` and all below it, deepest first."""
    return [Path(path) for path, _, _ in os.walk(cgroup, topdown=False)]


def _wait_empty(cgroup: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while populated(cgroup):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
