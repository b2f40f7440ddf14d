# SPDX-License-Identifier: Apache-2.0
"""Finds a pod's network namespace by its cgroup: pod uid -> cgroup -> process -> namespace.

This works with every runtime, because the kubelet names the cgroup of a pod:

    cgroupfs driver   .../kubepods/burstable/pod<uid>/<container>/cgroup.procs
    systemd driver    .../kubepods-burstable-pod<uid, - as _>.slice/<container>.scope/cgroup.procs

The oldest process of a pod belongs to its sandbox (`pause`). Only its namespace is certainly the
pod's; a later process may have changed its namespace. CRI-O with `monitor_cgroup = "pod"` places
its monitors beside the containers. They are older than these and in the node's namespace, and are
not processes of the pod.
tests/unit/agent/pods/layouts contains recorded layouts of real nodes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ztunnel.agent.pods.netns_finder import GONE, PROC, NetnsHandle, ProcFs

# Static pods have a uid of 32 hexadecimal digits, all others the usual form with dashes.
_UID = r"[0-9a-f](?:[0-9a-f]|{dash}){{30,34}}[0-9a-f]"
_NAMES = (
    re.compile(rf"pod({_UID.format(dash='-')})"),
    re.compile(rf"(?:.+-)?kubepods(?:-[a-z]+)?-pod({_UID.format(dash='_')})\.slice"),
)
_MONITOR = "crio-conmon-"
# Of cgroup.procs: ENODEV, the cgroup was removed after the open; EOPNOTSUPP, it is threaded, and
# its processes are listed in the cgroup above.
_NO_PROCESSES = GONE | {errno.ENODEV, errno.EOPNOTSUPP}


def pod_uid_of(cgroup_name: str) -> str | None:
    """The pod uid in the name of a cgroup directory; None if it is not a pod's cgroup."""
    for pattern in _NAMES:
        found = pattern.fullmatch(cgroup_name)
        if found:
            return found[1].replace("_", "-")
    return None


class CgroupDiscovery:
    """Searches below one cgroup: the node's, or the cgroup v2 root."""

    def __init__(self, cgroup: Path, proc: Path = PROC) -> None:
        self._cgroup = cgroup
        self._processes = ProcFs(proc)
        self._cgroups: dict[str, Path] = {}  # by pod uid

    def refresh(self, wanted: Iterable[str]) -> None:
        """Walk the tree once if one of the `wanted` pod uids has no known cgroup.

        Raises OSError, and retains what it knew.
        """
        missing = [uid for uid in wanted if not self._is_known(uid)]
        if missing:
            self._cgroups = _walk(self._cgroup)

    def open(self, pod_uid: str) -> NetnsHandle | None:
        """The namespace of a pod; None if none of its processes is running.

        Raises HostNamespaceError, and OSError if it cannot be known.
        """
        directory = self._cgroups.get(pod_uid)
        if directory is None:
            return None
        for pid in self._oldest_first(directory):
            found = self._processes.open(pid, lambda current: current in _pids(directory))
            if found is not None:
                return found
        return None

    def is_in_use(self, netns: NetnsHandle) -> bool:
        """Whether a process is in the namespace. Raises OSError."""
        return self._processes.is_in_use(netns)

    def _is_known(self, pod_uid: str) -> bool:
        directory = self._cgroups.get(pod_uid)
        return directory is not None and directory.is_dir()

    def _oldest_first(self, directory: Path) -> list[int]:
        started = {pid: self._processes.start_time(pid) for pid in _pids(directory)}
        return sorted((pid for pid in started if started[pid]), key=lambda pid: (started[pid], pid))


def _walk(top: Path) -> dict[str, Path]:
    """The cgroup of every pod below `top`."""
    found: dict[str, Path] = {}
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        for child in _directories(directory):
            uid = pod_uid_of(child.name)
            if uid is None:
                waiting.append(child)
            else:
                found[uid] = child
    return found


def _directories(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in GONE:
            return []
        raise


def _pids(directory: Path) -> set[int]:
    """All processes in a cgroup and below it."""
    found: set[int] = set()
    waiting = [directory]
    while waiting:
        cgroup = waiting.pop()
        waiting += [child for child in _directories(cgroup) if not child.name.startswith(_MONITOR)]
        try:
            found.update(int(pid) for pid in (cgroup / "cgroup.procs").read_text().split())
        except OSError as error:
            if error.errno not in _NO_PROCESSES:
                raise
    found.discard(0)  # a process of another pid namespace
    return found
