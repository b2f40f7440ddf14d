# SPDX-License-Identifier: Apache-2.0
"""The mounts the lab needs on the machine, and how to know later that it was the lab who made them.

The mark is in the mount table itself (the mount's source is `ztunnel-lab`), so that `down` leaves
the machine as it was even when the state directory is lost.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ztunnel.lab.errors import LabError
from ztunnel.lab.names import BPFFS, CGROUP_PREFIX, NETNS_ROOT

_MARK = "ztunnel-lab"
_PRELOADED = {"maps.debug", "progs.debug"}  # the kernel puts them into every new bpffs


def ensure(*, bpffs: bool) -> None:
    """A bpffs for pins (if wanted), and a shared directory for named network namespaces."""
    if bpffs and _mounted(BPFFS) is None:
        _mount("bpf", BPFFS)
    if _mounted(NETNS_ROOT) is None and not _entries(NETNS_ROOT):
        # shared, so that a namespace unbound here is unbound in every pod's mount namespace too
        NETNS_ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        _mount("tmpfs", NETNS_ROOT, "--make-shared", "-o", "mode=0755")


def release(cgroup_root: Path) -> None:
    """Unmount what the lab mounted, once it is empty and no other lab is there."""
    if any(cgroup_root.glob(f"{CGROUP_PREFIX}*")):
        return
    for point in (BPFFS, NETNS_ROOT):
        if _mounted(point) == _MARK and not _entries(point):
            # may be busy: somebody else began to use it, so it is theirs now
            subprocess.run(["umount", str(point)], capture_output=True, check=False)


def _mount(kind: str, point: Path, *options: str) -> None:
    argv = ["mount", "-t", kind, *options, _MARK, str(point)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"could not mount {kind} on {point}: {done.stderr.strip()}")


def _mounted(point: Path) -> str | None:
    """The source of the topmost mount at `point`; None when nothing is mounted there."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[4] == str(point):
            found = rest.split()[1]
    return found


def _entries(point: Path) -> set[str]:
    try:
        return set(os.listdir(point)) - _PRELOADED
    except FileNotFoundError:
        return set()
