# SPDX-License-Identifier: Apache-2.0
"""Open a pod's network namespace by a process or by a path, and be sure that it is the pod's.

A pid may end and be given to another process between two looks; so what makes a process the pod's
is asked again once the namespace is open.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h


class HostNamespaceError(Exception):
    """The pod runs in the node's own network namespace: capturing it would capture the node."""


@dataclass(frozen=True)
class NetnsHandle:
    """A pod's namespace. The caller owns `fd`. `pid` is 0 when no process led to it."""

    fd: int
    pid: int

    @property
    def inode(self) -> tuple[int, int]:
        """What tells two namespaces apart while one of them is held open."""
        return _inode(self.fd)

    def close(self) -> None:
        """Let go of the namespace."""
        os.close(self.fd)


class ProcFs:
    """The processes that one /proc shows."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc

    def start_time(self, pid: int) -> int:
        """In clock ticks since boot, field 22 of proc_pid_stat(5); 0 when it has ended."""
        try:
            text = (self._proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return 0
        return int(text.rpartition(")")[2].split()[19])

    def cgroups(self, pid: int) -> str:
        """Its /proc/PID/cgroup; empty when it has ended."""
        try:
            return (self._proc / str(pid) / "cgroup").read_text(errors="replace")
        except OSError:
            return ""

    def open(self, pid: int, is_the_pods: Callable[[int], bool]) -> NetnsHandle | None:
        """The namespace of a process; None when it ended, or is not the pod's (any more).

        Raises HostNamespaceError.
        """
        before = self.start_time(pid)
        try:
            fd = os.open(self._proc / str(pid) / "ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        found = NetnsHandle(fd, pid)
        if not before or self.start_time(pid) != before or not is_the_pods(pid):
            found.close()
            return None
        return self._checked(found, f"process {pid} of the pod")

    def open_path(self, path: Path) -> NetnsHandle | None:
        """The network namespace that is bound to a path; None when none is.

        Raises HostNamespaceError.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            return None
        found = NetnsHandle(fd, 0)
        try:
            kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError:  # a file, when the namespace was unbound
            kind = 0
        if kind != _CLONE_NEWNET:
            found.close()
            return None
        return self._checked(found, "the pod")

    def _checked(self, found: NetnsHandle, who: str) -> NetnsHandle:
        if any(self._inode_of(process) == found.inode for process in ("1", "self")):
            found.close()
            raise HostNamespaceError(f"{who} is in the node's own network namespace")
        return found

    def _inode_of(self, process: str) -> tuple[int, int] | None:
        try:
            return _inode(self._proc / process / "ns/net")
        except PermissionError:  # pid 1 is another's, as in a container
            return None


def _inode(path: Path | int) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
