# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces, compatible with `ip netns`: create, enter, run in, remove."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pyroute2 import netns as pyroute2_netns

from ztunnel.lab.errors import LabError
from ztunnel.lab.names import NETNS_ROOT


def path_of(name: str) -> Path:
    """The path at which the namespace is bind-mounted."""
    return NETNS_ROOT / name


def create(name: str, sysctls: Mapping[str, str]) -> bool:
    """Create the namespace unless it exists. Returns whether it was created.

    `sysctls` (paths below /proc/sys/net) are set first, so that interfaces inherit them.
    """
    is_new = not is_live(name)
    if is_new:
        remove(name)  # removes a file without a mount, after a crash
        pyroute2_netns.create(name)
    with inside(name):
        for key, value in sysctls.items():
            Path("/proc/sys/net", key).write_text(value)
    return is_new


def is_live(name: str) -> bool:
    """Whether the namespace is mounted; after a crash there may be only its file."""
    try:
        return os.stat(path_of(name)).st_dev != os.stat(NETNS_ROOT).st_dev
    except FileNotFoundError:
        return False


def remove(name: str) -> None:
    """Unmount the namespace. The kernel frees it after its last process exits."""
    if not path_of(name).exists():
        return
    with suppress(OSError):  # not mounted: only the file exists
        pyroute2_netns.remove(name)
    path_of(name).unlink(missing_ok=True)


def with_prefix(prefix: str) -> list[str]:
    """The names of the namespaces with a prefix."""
    return sorted(path.name for path in NETNS_ROOT.glob(f"{prefix}*"))


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the body with the calling thread in the namespace. Its sockets stay in the namespace."""
    original = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pyroute2_netns.setns(str(path_of(name)), flags=0)
        try:
            yield
        finally:
            pyroute2_netns.setns(original)
    finally:
        os.close(original)


def enter_argv(name: str) -> list[str]:
    """The command prefix that runs a command in the namespace."""
    return ["nsenter", f"--net={path_of(name)}", "--"]


def run(name: str, argv: Sequence[str], *, stdin: str | None = None) -> str:
    """Run a command in the namespace. Returns its output; raises LabError with its error."""
    process = subprocess.run(
        [*enter_argv(name), *argv], input=stdin, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise LabError(f"{' '.join(argv)} failed in namespace {name}: {process.stderr.strip()}")
    return process.stdout
