# SPDX-License-Identifier: Apache-2.0
"""Opens a pod's network namespace by process or by path, and verifies that it is the pod's.

A process may exit and its pid may be reused. Therefore the caller's criterion is checked again
after the namespace is open.
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
    """A pod's namespace. The caller owns `fd`. `pid` is 0 if it was opened by path."""

    fd: int
    pid: int

    @property
    def inode(self) -> tuple[int, int]:
        """Identifies the namespace while it is open."""
        return _inode(self.fd)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class ProcFs:
    """The processes of a /proc mount."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc

    def start_time(self, pid: int) -> int:
        """In clock ticks since boot, field 22 of proc_pid_stat(5); 0 if the process has exited."""
        try:
            text = (self._proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return 0
        return int(text.rpartition(")")[2].split()[19])

    def cgroups(self, pid: int) -> str:
        """The content of /proc/PID/cgroup; empty if the process has exited."""
        try:
            return (self._proc / str(pid) / "cgroup").read_text(errors="replace")
        except OSError:
            return ""

    def open(self, pid: int, is_of_pod: Callable[[int], bool]) -> NetnsHandle | None:
        """The namespace of a process; None if it has exited or is not the pod's.

        Raises HostNamespaceError.
        """
        before = self.start_time(pid)
        try:
            fd = os.open(self._proc / str(pid) / "ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        handle = NetnsHandle(fd, pid)
        if not before or self.start_time(pid) != before or not is_of_pod(pid):
            handle.close()
            return None
        return self._verify(handle, f"process {pid} of the pod")

    def open_path(self, path: Path) -> NetnsHandle | None:
        """The network namespace that is bound to a path; None if there is none.

        Raises HostNamespaceError.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            return None
        handle = NetnsHandle(fd, 0)
        try:
            kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError:  # a regular file: the namespace is no longer bound
            kind = 0
        if kind != _CLONE_NEWNET:
            handle.close()
            return None
        return self._verify(handle, "the pod")

    def _verify(self, handle: NetnsHandle, subject: str) -> NetnsHandle:
        if any(self._inode_of(process) == handle.inode for process in ("1", "self")):
            handle.close()
            raise HostNamespaceError(f"{subject} is in the node's own network namespace")
        return handle

    def _inode_of(self, process: str) -> tuple[int, int] | None:
        try:
            return _inode(self._proc / process / "ns/net")
        except PermissionError:  # pid 1 belongs to another user, as in a container
            return None


def _inode(path: Path | int) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
