# SPDX-License-Identifier: Apache-2.0
"""All names and paths of a lab. They follow from its name, so `down` works without saved state."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from ztunnel.lab.errors import LabError

STATE_ROOT = Path("/run/ztunnel-lab")
NETNS_ROOT = Path("/run/netns")
BPFFS = Path("/sys/fs/bpf")
CGROUP_PREFIX = "ztunnel-lab-"

_NAME = re.compile(r"[a-z][a-z0-9]{0,15}")  # no dash: it is the separator after the lab's name
_MAX_NETNS_NAME = 60  # characters


@dataclass(frozen=True)
class LabNames:
    """The names of the lab called `name` below the cgroup-v2 root `cgroup_root`."""

    name: str
    cgroup_root: Path

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LabError(
                f"lab name {self.name!r} is not usable; hint: use a lower-case letter followed by "
                "up to 15 lower-case letters or digits, for example --name lab2"
            )

    @property
    def state(self) -> Path:
        return STATE_ROOT / self.name

    @property
    def objects(self) -> Path:
        return self.state / "objects"

    @property
    def secrets(self) -> Path:
        return self.state / "secrets"

    @property
    def ca(self) -> Path:
        return self.state / "ca"

    @property
    def settings(self) -> Path:
        return self.state / "lab.json"

    @property
    def cgroup(self) -> Path:
        return self.cgroup_root / f"{CGROUP_PREFIX}{self.name}"

    @property
    def netns_prefix(self) -> str:
        return f"zt{self.name}-"

    @property
    def underlay_netns(self) -> str:
        return f"{self.netns_prefix}underlay"

    @property
    def external_netns(self) -> str:
        """The machine outside the cluster."""
        return f"{self.netns_prefix}external"

    @property
    def external_cgroup(self) -> Path:
        return self.cgroup / "external"

    def node_netns(self, node: str) -> str:
        return f"{self.netns_prefix}{node}"

    def pod_netns(self, namespace: str, pod: str) -> str:
        """`zt<lab>-<namespace>-<pod>`; the end of a long name is replaced by a hash."""
        full = f"{self.netns_prefix}{namespace}-{pod}"
        if len(full) <= _MAX_NETNS_NAME:
            return full
        digest = hashlib.sha256(full.encode()).hexdigest()[:8]
        return f"{full[: _MAX_NETNS_NAME - 9]}-{digest}"

    def run_dir(self, node: str) -> Path:
        return self.state / node

    def pod_dir(self, uid: str) -> Path:
        return self.state / "pods" / uid

    def pin_dir(self, node: str) -> Path:
        return BPFFS / f"ztunnel-{self.name}-{node}"

    def pin_dirs(self) -> list[Path]:
        """The existing pin directories of all nodes."""
        return sorted(BPFFS.glob(f"ztunnel-{self.name}-*"))

    def node_cgroup(self, node: str) -> Path:
        return self.cgroup / node

    def pod_cgroup(self, node: str, uid: str) -> Path:
        return self.cgroup / node / "kubepods" / f"pod{uid}"
