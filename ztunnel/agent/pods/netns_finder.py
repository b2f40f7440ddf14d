# SPDX-License-Identifier: Apache-2.0
"""Opens a pod's network namespace by process or by path, and verifies that it is the pod's.

A process may exit and its pid may be reused. Therefore the caller's criterion is checked again
after the namespace is open.

Only ENOENT and ESRCH mean that something is gone. Every other error, EMFILE for example, means
that the agent cannot know: it is raised, and the caller changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
GONE = frozenset({errno.ENOENT, errno.ESRCH})
# Of open(2) and ioctl(2): something else than a namespace is at the path.
_NOT_A_NAMESPACE = GONE | {errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENOTTY}
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
        """In clock ticks since boot, field 22 of proc_pid_stat(5); 0 if the process has exited.

        Raises OSError if that cannot be known.
        """
        text = self._read(pid, "stat")
        return int(text.rpartition(")")[2].split()[19]) if text else 0

    def cgroups(self, pid: int) -> str:
        """The content of /proc/PID/cgroup; empty if the process has exited. Raises OSError."""
        return self._read(pid, "cgroup")

    def is_in_use(self, netns: NetnsHandle) -> bool:
        """Whether a process is in the namespace. Raises OSError if that cannot be known."""
        return any(
            self._is_in(int(entry.name), netns.inode)
            for entry in self._proc.iterdir()
            if entry.name.isdigit()
        )

    def open(self, pid: int, is_of_pod: Callable[[int], bool]) -> NetnsHandle | None:
        """The namespace of a process; None if it has exited or is not the pod's.

        Raises HostNamespaceError, and OSError if it cannot be known.
        """
        before = self.start_time(pid)
        if not before:
            return None
        try:
            fd = os.open(self._netns_path(pid), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if self._has_exited(pid, before, error):
                return None
            raise
        handle = NetnsHandle(fd, pid)
        try:
            is_valid = self.start_time(pid) == before and is_of_pod(pid)
        except OSError:
            handle.close()
            raise
        if not is_valid:
            handle.close()
            return None
        return self._verify(handle, f"process {pid} of the pod")

    def open_path(self, path: Path) -> NetnsHandle | None:
        """The network namespace that is bound to a path; None if there is none.

        Raises HostNamespaceError, and OSError if it cannot be known.
        """
        fd = -1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            if error.errno in _NOT_A_NAMESPACE:  # once unbound, the path is a regular file
                return None
            raise
        if kind != _CLONE_NEWNET:
            os.close(fd)
            return None
        return self._verify(NetnsHandle(fd, 0), "the pod")

    def _verify(self, handle: NetnsHandle, subject: str) -> NetnsHandle:
        try:
            is_host = any(self._inode_of(process) == handle.inode for process in ("1", "self"))
        except OSError:
            handle.close()
            raise
        if is_host:
            handle.close()
            raise HostNamespaceError(f"{subject} is in the node's own network namespace")
        return handle

    def _inode_of(self, process: str) -> tuple[int, int] | None:
        try:
            return _inode(self._netns_path(process))
        except PermissionError:  # pid 1 belongs to another user, as in a container
            return None

    def _is_in(self, pid: int, inode: tuple[int, int]) -> bool:
        if pid == 1:  # never a pod's, and it may belong to another user
            return False
        before = self.start_time(pid)
        try:
            return _inode(self._netns_path(pid)) == inode
        except OSError as error:
            if self._has_exited(pid, before, error):
                return False
            raise

    def _has_exited(self, pid: int, started_at: int, error: OSError) -> bool:
        """Whether an error of ns/net is due to an exit: the kernel also returns EACCES then."""
        return error.errno in GONE or self.start_time(pid) != started_at or not started_at

    def _netns_path(self, process: int | str) -> Path:
        return self._proc / str(process) / "ns/net"

    def _read(self, pid: int, name: str) -> str:
        """A file of a process; empty if the process has exited. Raises OSError."""
        try:
            return (self._proc / str(pid) / name).read_text(errors="replace")
        except OSError as error:
            if error.errno in GONE:
                return ""
            raise


def _inode(path: Path | int) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
