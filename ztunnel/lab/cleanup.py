# SPDX-License-Identifier: Apache-2.0
"""Taking a lab down by what the kernel has, not by what a state file remembers.

Everything of a lab is found by its name: its cgroup, its namespaces' prefix, its pin directories.
So it works after any crash, twice, and with the state directory gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from ztunnel.lab.errors import LabError
from ztunnel.lab.names import STATE_ROOT, LabNames
from ztunnel.lab.network import netns
from ztunnel.lab.runtime import cgroups, mounts

_DEADLINE = 10.0  # seconds for killed processes to be gone


def remove_everything(names: LabNames) -> list[str]:
    """Remove the lab; what was removed, one line each. Removing nothing is fine."""
    removed = []
    if names.cgroup.exists():
        cgroups.kill(names.cgroup)
    spaces = netns.with_prefix(names.netns_prefix)
    removed += _end_strangers(spaces)
    for directory in names.pin_dirs():
        shutil.rmtree(directory)
        removed.append(f"pins {directory}")
    for space in spaces:
        netns.remove(space)
        removed.append(f"network namespace {space}")
    if names.cgroup.exists():
        cgroups.remove(names.cgroup)
        removed.append(f"cgroup {names.cgroup}")
    if names.state.exists():
        shutil.rmtree(names.state)
        removed.append(f"state {names.state}")
    (STATE_ROOT / f".{names.name}.lock").unlink(missing_ok=True)
    with suppress(OSError):  # other labs live there, or it never existed
        STATE_ROOT.rmdir()
    mounts.release(names.cgroup_root)
    return removed


def _end_strangers(spaces: list[str]) -> list[str]:
    """Kill what sits in the lab's namespaces but outside its cgroup."""
    inodes = {os.stat(netns.path_of(space)).st_ino for space in spaces if netns.is_live(space)}
    ended = []
    deadline = time.monotonic() + _DEADLINE
    while found := _processes_in(inodes):
        for pid, command in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                ended.append(f"process {pid} ({command})")
        if time.monotonic() > deadline:
            raise LabError(f"processes {found} survived SIGKILL; see /proc/PID/stack")
        time.sleep(0.05)
    return sorted(set(ended))


def _processes_in(inodes: set[int]) -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        with suppress(OSError):  # ended meanwhile, or a zombie
            if pid != os.getpid() and os.stat(entry / "ns/net").st_ino in inodes:
                found.append((pid, (entry / "comm").read_text().strip()))
    return found
