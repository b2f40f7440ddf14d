# SPDX-License-Identifier: Apache-2.0
"""Find a pod's network namespace by its cgroup: pod uid → cgroup → process → namespace.

Works with every runtime, as the kubelet names the pod's cgroup, not the runtime:

    cgroupfs driver   .../kubepods/burstable/pod<uid>/<container>/cgroup.procs
    systemd driver    .../kubepods-burstable-pod<uid, - as _>.slice/<container>.scope/cgroup.procs

The oldest process of a pod is its sandbox's (`pause`): only its namespace is the pod's for sure,
a later one may have moved. CRI-O with `monitor_cgroup = "pod"` puts its monitors beside the
containers, older than these and in the node's namespace: they are no processes of the pod.
tests/unit/agent/pods/layouts has what real nodes look like.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ztunnel.agent.pods.netns_finder import PROC, NetnsHandle, ProcFs

# Static pods have a uid of 32 hexadecimal digits, all others the usual form with dashes.
_UID = r"[0-9a-f](?:[0-9a-f]|{dash}){{30,34}}[0-9a-f]"
_NAMES = (
    re.compile(rf"pod({_UID.format(dash='-')})"),
    re.compile(rf"(?:.+-)?kubepods(?:-[a-z]+)?-pod({_UID.format(dash='_')})\.slice"),
)
_MONITOR = "crio-conmon-"


def pod_uid_of(cgroup_name: str) -> str | None:
    """The pod uid in the name of a cgroup directory, None when it is no pod's."""
    for pattern in _NAMES:
        found = pattern.fullmatch(cgroup_name)
        if found:
            return found[1].replace("_", "-")
    return None


class Discovery:
    """Looks below one cgroup (the node's, or the cgroup v2 root)."""

    def __init__(self, cgroup: Path, proc: Path = PROC) -> None:
        self._cgroup = cgroup
        self._processes = ProcFs(proc)
        self._known: dict[str, Path] = {}

    def refresh(self, wanted: Iterable[str]) -> None:
        """Walk the tree once if one of the `wanted` pod uids has no known cgroup."""
        missing = [uid for uid in wanted if not self._is_known(uid)]
        if missing:
            self._known = _walk(self._cgroup)

    def open(self, pod_uid: str) -> NetnsHandle | None:
        """The namespace of a pod; None while none of its processes runs.

        Raises HostNamespaceError.
        """
        directory = self._known.get(pod_uid)
        if directory is None:
            return None
        for pid in self._oldest_first(directory):
            found = self._processes.open(pid, lambda one: one in _pids(directory))
            if found is not None:
                return found
        return None

    def _is_known(self, pod_uid: str) -> bool:
        directory = self._known.get(pod_uid)
        return directory is not None and directory.is_dir()

    def _oldest_first(self, directory: Path) -> list[int]:
        born = {pid: self._processes.start_time(pid) for pid in _pids(directory)}
        return sorted((pid for pid in born if born[pid]), key=lambda pid: (born[pid], pid))


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
    except OSError:  # it vanished
        return []


def _pids(directory: Path) -> set[int]:
    """All processes in a cgroup and below it."""
    found: set[int] = set()
    waiting = [directory]
    while waiting:
        one = waiting.pop()
        waiting += [child for child in _directories(one) if not child.name.startswith(_MONITOR)]
        try:
            found.update(int(word) for word in (one / "cgroup.procs").read_text().split())
        except OSError:  # it vanished, or is a threaded cgroup
            continue
    found.discard(0)  # a process of another pid namespace
    return found
