# SPDX-License-Identifier: Apache-2.0
"""Configuration of containerd and CRI-O. `NAME.sh` starts them.

`driver` creates cgroups, `cgroupfs` or `systemd`; kubelet and runtime must agree.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.support.apiserver.server import ROOT

PAUSE = "ztunnel.test/pause:1"
CGROUPFS, SYSTEMD = "cgroupfs", "systemd"
RUNC = Path(__file__).resolve().parent / "runc.py"
_CRI = 'plugins."io.containerd.grpc.v1.cri"'


@dataclass(frozen=True)
class Runtime:
    """`files` returns text by name, from the directory of a node and a driver; `build`, in
    scripts/, prints the directory of its programs."""

    name: str
    socket: Path
    files: Callable[[Path, str], dict[str, str]]
    build: str = ""

    def prepare(self, directory: Path, driver: str) -> None:
        """Write the files that `NAME.sh` needs into the directory of a node."""
        for name, text in self.files(directory, driver).items():
            (directory / name).write_text(text)
        if self.build:
            done = subprocess.run(
                [ROOT / "scripts" / self.build], stdout=subprocess.PIPE, text=True, check=True
            )
            (directory / "bin").symlink_to(done.stdout.splitlines()[-1])


def _containerd(directory: Path, driver: str) -> dict[str, str]:
    config = f"""version = 2
root = "{directory}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[{_CRI}]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[{_CRI}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{_CRI}.containerd.runtimes.runc.options]
SystemdCgroup = {"true" if driver == SYSTEMD else "false"}
[{_CRI}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{directory}/cni"
"""
    return {"containerd.toml": config}


def _crio(directory: Path, driver: str, monitor: str = "") -> dict[str, str]:
    """The defaults except for paths, the OCI runtime, and the consequences of the driver."""
    monitor = monitor or ("system.slice" if driver == SYSTEMD else "pod")
    config = f"""[crio]
root = "{directory}/storage"
runroot = "/run/containers/storage"
storage_driver = "overlay"
[crio.runtime]
cgroup_manager = "{driver}"
default_runtime = "runc"
pinns_path = "{directory}/bin/pinns"
[crio.runtime.runtimes.runc]
runtime_path = "{RUNC}"
runtime_root = "/run/runc"
monitor_path = "/usr/bin/conmon"
monitor_cgroup = "{monitor}"
[crio.image]
pause_image = "{PAUSE}"
pause_command = ""
signature_policy = "{directory}/policy.json"
[crio.network]
network_dir = "{directory}/cni"
plugin_dirs = ["/usr/lib/cni"]
[crio.nri]
enable_nri = false
"""
    return {"crio.toml": config, "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}'}


CONTAINERD = Runtime("containerd", Path("/run/containerd/containerd.sock"), _containerd)
CRIO = Runtime("crio", Path("/run/crio/crio.sock"), _crio, build="crio")
# with monitors in the cgroups of pods, as in OpenShift
CRIO_IN_PODS = replace(CRIO, files=partial(_crio, monitor="pod"))
