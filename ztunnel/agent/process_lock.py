# SPDX-License-Identifier: Apache-2.0
"""Facts of the node the agent runs on, and its claim to be the only agent there."""

from __future__ import annotations

import fcntl
import os
import resource
from pathlib import Path


class AlreadyRunningError(Exception):
    """Another agent serves this run directory."""


def claim(run_dir: Path) -> int:
    """Take the directory for this process until it ends, however it ends.

    The descriptor must stay open. Raises AlreadyRunningError.
    """
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    lock = os.open(run_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise AlreadyRunningError(
            f"an agent with pid {holder} serves {run_dir}; stop it, or give another --run-dir"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def allow_many_descriptors() -> None:
    """Six listeners a pod and the sockets in flight to workers exceed the usual soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
