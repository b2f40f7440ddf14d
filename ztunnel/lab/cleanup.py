# SPDX-License-Identifier: Apache-2.0
"""Removes a lab by what exists in the kernel, not by saved state.

All parts of a lab are found by its name: its cgroup, its namespaces and its pin directories. So
the removal works after crashes, without the state directory, and repeatedly.
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

_KILL_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.05


def remove_all(names: LabNames) -> list[str]:
    """Remove the lab. Returns a line for each item that was removed."""
    removed = []
    if names.cgroup.exists():
        cgroups.kill(names.cgroup)
    namespaces = netns.with_prefix(names.netns_prefix)
    removed += _kill_processes_in(namespaces)
    for directory in names.pin_dirs():
        shutil.rmtree(directory)
        removed.append(f"pins {directory}")
    for namespace in namespaces:
        netns.remove(namespace)
        removed.append(f"network namespace {namespace}")
    if names.cgroup.exists():
        cgroups.remove(names.cgroup)
        removed.append(f"cgroup {names.cgroup}")
    if names.state.exists():
        shutil.rmtree(names.state)
        removed.append(f"state {names.state}")
    (STATE_ROOT / f".{names.name}.lock").unlink(missing_ok=True)
    with suppress(OSError):  # it has other labs, or does not exist
        STATE_ROOT.rmdir()
    mounts.release(names.cgroup_root)
    return removed


def _kill_processes_in(namespaces: list[str]) -> list[str]:
    """Kill processes that are in the lab's namespaces but outside its cgroup."""
    inodes = {os.stat(netns.path_of(name)).st_ino for name in namespaces if netns.is_live(name)}
    killed = []
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while processes := _processes_in(inodes):
        for pid, command in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(f"process {pid} ({command})")
        if time.monotonic() > deadline:
            raise LabError(f"processes {processes} survived SIGKILL; hint: see /proc/PID/stack")
        time.sleep(_POLL_INTERVAL_S)
    return sorted(set(killed))


def _processes_in(inodes: set[int]) -> list[tuple[int, str]]:
    """The pids and commands of the processes in the network namespaces with these inodes."""
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        with suppress(OSError):  # exited in the meantime, or a zombie
            if pid != os.getpid() and os.stat(entry / "ns/net").st_ino in inodes:
                processes.append((pid, (entry / "comm").read_text().strip()))
    return processes
