# SPDX-License-Identifier: Apache-2.0
"""Mounts that the lab needs on the machine.

The source of the lab's mounts is `ztunnel-lab`, so that `down` can identify and unmount them even
if the state directory is lost.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ztunnel.lab.errors import LabError
from ztunnel.lab.names import BPFFS, CGROUP_PREFIX, NETNS_ROOT

_SOURCE = "ztunnel-lab"
_BPFFS_DEFAULT_ENTRIES = {"maps.debug", "progs.debug"}  # in every new bpffs


def ensure(*, bpffs: bool) -> None:
    """Mount a bpffs for pins, if `bpffs`, and a shared tmpfs for named network namespaces."""
    if bpffs and _mount_source(BPFFS) is None:
        _mount("bpf", BPFFS)
    if _mount_source(NETNS_ROOT) is None and not _entries(NETNS_ROOT):
        # shared, so that unmounting a namespace also unmounts it in pods' mount namespaces
        NETNS_ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        _mount("tmpfs", NETNS_ROOT, "--make-shared", "-o", "mode=0755")


def release(cgroup_root: Path) -> None:
    """Unmount the lab's mounts that are empty, unless another lab exists."""
    if any(cgroup_root.glob(f"{CGROUP_PREFIX}*")):
        return
    for point in (BPFFS, NETNS_ROOT):
        if _mount_source(point) == _SOURCE and not _entries(point):
            # fails with EBUSY if another program uses the mount, which then remains
            subprocess.run(["umount", str(point)], capture_output=True, check=False)


def _mount(kind: str, point: Path, *options: str) -> None:
    argv = ["mount", "-t", kind, *options, _SOURCE, str(point)]
    process = subprocess.run(argv, capture_output=True, text=True, check=False)
    if process.returncode:
        raise LabError(f"cannot mount {kind} at {point}: {process.stderr.strip()}")


def _mount_source(point: Path) -> str | None:
    """The source of the topmost mount at `point`; None if there is no mount."""
    source = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[4] == str(point):
            source = rest.split()[1]
    return source


def _entries(point: Path) -> set[str]:
    try:
        return set(os.listdir(point)) - _BPFFS_DEFAULT_ENTRIES
    except FileNotFoundError:
        return set()
