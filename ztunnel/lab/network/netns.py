# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces, `ip netns` style: make, enter, run in, remove."""

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
    """Where the namespace is bound."""
    return NETNS_ROOT / name


def create(name: str, sysctls: Mapping[str, str]) -> bool:
    """Make the namespace unless it exists; says whether it was made.

    `sysctls` are written before any interface appears, so that interfaces inherit them.
    """
    made = not is_live(name)
    if made:
        remove(name)  # a file without a namespace, left by a crash
        pyroute2_netns.create(name)
    with inside(name):
        for key, value in sysctls.items():
            Path("/proc/sys/net", key).write_text(value)
    return made


def is_live(name: str) -> bool:
    """Whether a namespace is really bound there, not only its file."""
    try:
        return os.stat(path_of(name)).st_dev != os.stat(NETNS_ROOT).st_dev
    except FileNotFoundError:
        return False


def remove(name: str) -> None:
    """Unbind the namespace; it ends with its last process."""
    if not path_of(name).exists():
        return
    with suppress(OSError):  # not mounted: only the file is left
        pyroute2_netns.remove(name)
    path_of(name).unlink(missing_ok=True)


def with_prefix(prefix: str) -> list[str]:
    """The bound namespaces whose name starts with `prefix`."""
    return sorted(path.name for path in NETNS_ROOT.glob(f"{prefix}*"))


@contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the namespace; sockets made here stay in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pyroute2_netns.setns(str(path_of(name)), flags=0)
        try:
            yield
        finally:
            pyroute2_netns.setns(home)
    finally:
        os.close(home)


def enter_argv(name: str) -> list[str]:
    """The command prefix that runs what follows in the namespace."""
    return ["nsenter", f"--net={path_of(name)}", "--"]


def run(name: str, argv: Sequence[str], *, stdin: str | None = None) -> str:
    """Run a short command in the namespace; its output, or LabError with its complaint."""
    done = subprocess.run(
        [*enter_argv(name), *argv], input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"{' '.join(argv)} failed in namespace {name}: {done.stderr.strip()}")
    return done.stdout
