# SPDX-License-Identifier: Apache-2.0
"""Removes namespaces, pins and cgroups of killed test runs.

Their names contain the process id; resources of running processes remain.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ztunnel.datapath import requirements

_NETNS = Path("/run/netns")
_CGROUP, _PINS, _NAMESPACE = (
    re.compile(pattern + r"(\d+)x\d+")
    for pattern in (
        r"zt-test-",
        r"ztunnel-test-",
        r"zt[pq]",
    )  # see tests/bpf/netns_fixture.py
)


def remove_stale_resources() -> list[str]:
    """Remove the resources and return their names."""
    removed = []
    for path in _of_ended_processes(_NETNS, _NAMESPACE):
        subprocess.run(["ip", "netns", "del", path.name], check=True, timeout=30)
        removed.append(path.name)
    for path in _of_ended_processes(requirements.BPFFS, _PINS):
        shutil.rmtree(path)
        removed.append(path.name)
    for path in _of_ended_processes(requirements.cgroup2_root(), _CGROUP):
        with suppress(OSError):  # a child process of that run is still in it
            for cgroup in (*_descendants(path), path):
                cgroup.rmdir()
            removed.append(path.name)
    return removed


def _descendants(cgroup: Path) -> Iterator[Path]:
    """Yield the cgroups below a cgroup, the deepest first: only an empty one can be removed."""
    for child in sorted(each for each in cgroup.iterdir() if each.is_dir()):
        yield from _descendants(child)
        yield child


def _of_ended_processes(folder: Path, name: re.Pattern[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = name.fullmatch(path.name)
        if match is not None and not Path(f"/proc/{match[1]}").exists():
            yield path
