# SPDX-License-Identifier: Apache-2.0
"""The lock that allows one agent per run directory, and the limit of file descriptors."""

from __future__ import annotations

import fcntl
import os
import resource
from pathlib import Path


class AlreadyRunningError(Exception):
    """Another agent uses this run directory."""


def lock(run_dir: Path) -> int:
    """Lock the directory until this process exits or closes the returned descriptor.

    Raises AlreadyRunningError.
    """
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    fd = os.open(run_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise AlreadyRunningError(
            f"an agent with pid {holder} uses {run_dir}; hint: stop it, or set another --run-dir"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def raise_descriptor_limit() -> None:
    """Listeners of all pods and sockets in transit to workers exceed the usual soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
