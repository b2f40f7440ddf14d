# SPDX-License-Identifier: Apache-2.0
"""What a killed test run left in the kernel: namespaces, pins and cgroups named after its process.

Only of processes that are no more: another run beside this one keeps its own.
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
    )  # as tests/bpf/netns_fixture.py has it
)


def tidy() -> list[str]:
    """Take it away; what was there."""
    removed = []
    for path in _of_the_dead(_NETNS, _NAMESPACE):
        subprocess.run(["ip", "netns", "del", path.name], check=True, timeout=30)
        removed.append(path.name)
    for path in _of_the_dead(requirements.BPFFS, _PINS):
        shutil.rmtree(path)
        removed.append(path.name)
    for path in _of_the_dead(requirements.cgroup2_root(), _CGROUP):
        with suppress(OSError):  # a child of that run lives on in it
            path.rmdir()
            removed.append(path.name)
    return removed


def _of_the_dead(folder: Path, name: re.Pattern[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = name.fullmatch(path.name)
        if match is not None and not Path(f"/proc/{match[1]}").exists():
            yield path
