# SPDX-License-Identifier: Apache-2.0
"""A node without an API server: a kubelet, a container runtime, and the pods of `pods.py`.

    with apart(scratch, CRIO, SYSTEMD) as node: ...     # in its own namespaces
    with in_place(scratch, CRIO, SYSTEMD) as node: ...  # a virtual machine as the node
    with kind(scratch, CONTAINERD, SYSTEMD) as node: ...  # in a container there, like kind

`scratch` is an empty directory. With the systemd driver, PID 1 of a node apart is systemd.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.node.runtime_nodes import pods
from tests.node.runtime_nodes.kubelet import configuration
from tests.node.runtime_nodes.pods import PODS
from tests.node.runtime_nodes.runtimes import PAUSE, SYSTEMD, Runtime
from tests.support.apiserver.control_plane import wait_until
from tests.support.apiserver.server import assets
from tests.support.nodes import images
from tests.support.nodes.kubelet_node import PREFIX, _make_cgroup, _remove_cgroup, hierarchies

HERE = Path(__file__).resolve().parent
KIND_PAUSE = "registry.k8s.io/pause:3.10"  # version of the containerd configuration
KIND_FILES = "KIND_FILES"  # environment variable: the directory that `kind.sh fetch` created
_ROLES = {pods.PAUSED: "pause", pods.APP: "app"}
_ADDRESS = "10.99.0.11"
_WIRED = (
    f"ip link set lo up; ip link add eth0 type bridge; ip addr add {_ADDRESS}/24 dev eth0;"
    ' ip link set eth0 up; ip route add default via 10.99.0.1; exec "$@"'
)
# Few commands, for an emulated machine. Processes without a program are kernel threads or ended.
_LOOK = """
for one in /proc/[0-9]*; do
  [ -e $one/exe ] && read -r name <$one/comm || continue
  words=$name
  [ "$name" = sleep ] && words=$(tr "\\0" " " <$one/cmdline)
  echo "= ${one#/proc/} $(readlink $one/ns/net) $name $words"
  while read -r line; do echo "$line"; done <$one/cgroup
done 2>/dev/null
"""


@dataclass(frozen=True)
class Process:
    """`pid` and `cgroup` as the node sees them; `role` is pause, app, or the program's name."""

    pid: int
    netns: str
    role: str
    cgroup: str

    def is_of(self, uid: str) -> bool:
        """Whether its cgroup belongs to a pod."""
        return uid in self.cgroup or uid.replace("-", "_") in self.cgroup


@dataclass(frozen=True)
class Node:
    """A running node. `enter` prefixes a command to run in its namespaces, `root` is its / from
    outside."""

    runtime: Runtime
    directory: Path
    enter: Sequence[str]
    root: Path

    def run(self, *argv: str) -> str:
        """The output of a command on the node, whatever its exit status."""
        words = [*self.enter, *argv]
        return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False).stdout

    def processes(self) -> dict[int, Process]:
        """All processes that the node sees, by PID."""
        found = {}
        for block in f"\n{self.run('sh', '-c', _LOOK)}".split("\n= ")[1:]:
            head, _, cgroup = block.partition("\n")
            seen = head.split()
            if len(seen) > 3:  # otherwise it ended meanwhile
                pid, netns, name, *words = seen
                role = _ROLES.get(words[-1], name) if words[0] == "sleep" else name
                found[int(pid)] = Process(int(pid), netns, role, cgroup.strip())
        return found

    def runs(self) -> bool:
        """Whether every container that can be created exists."""
        apps = [one for one in self.processes().values() if one.role == "app"]
        return len(apps) == len(PODS) - 1

    def logs(self) -> str:
        """The end of the logs of all its programs."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )


@contextmanager
def apart(scratch: Path, runtime: Runtime, driver: str) -> Iterator[Node]:
    """In its own namespaces and cgroup; with systemd it sees nothing above that cgroup."""
    cgroup = f"{PREFIX}{os.getpid()}-{runtime.name}-{driver}"
    is_systemd = driver == SYSTEMD
    kubelet = _prepare(scratch, runtime, driver, "/" if is_systemd else f"/{cgroup}")
    directory = scratch / "node"
    for hierarchy in hierarchies():
        _make_cgroup(hierarchy / cgroup)
    init = ["systemd.sh", cgroup] if is_systemd else ["init_no_systemd.sh"]
    words = [
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork"),
        *("--kill-child", "--mount-proc", "sh", "-ec", _WIRED, "sh"),
        *(str(HERE / init[0]), *init[1:], str(directory), runtime.name, *kubelet),
    ]
    with (directory / "init.log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        pid = wait_until(lambda: children.read_text().split(), "the node's first process")[0]
        yield Node(runtime, directory, _entering(pid), Path("/proc", pid, "root"))
    finally:
        process.kill()  # kills its child, PID 1 of the node
        process.wait()
        for hierarchy in hierarchies():
            _remove_cgroup(hierarchy / cgroup)


@contextmanager
def in_place(scratch: Path, runtime: Runtime, driver: str) -> Iterator[Node]:
    """The machine itself as the node: a disposable virtual machine with systemd."""
    kubelet = _prepare(scratch, runtime, driver, "/")
    directory = scratch / "node"
    if not Path("/sys/class/net/eth0").exists():
        subprocess.run(["sh", "-ec", _WIRED, "sh", "true"], check=True)
    words = [str(HERE / "host_node.sh"), "start", str(directory), runtime.name, *kubelet]
    subprocess.run(words, check=True)
    try:
        yield Node(runtime, directory, [], Path("/"))
    finally:
        subprocess.run([HERE / "host_node.sh", "stop", runtime.name], check=True)


@contextmanager
def kind(scratch: Path, runtime: Runtime, driver: str) -> Iterator[Node]:
    """A node like those of kind, on a disposable virtual machine; see kind.sh."""
    kubelet = _prepare(scratch, runtime, driver, "/kubelet", manifests="/etc/kubernetes/manifests")
    directory = scratch / "node"
    flags = "KUBELET_KUBECONFIG_ARGS=\nKUBELET_KUBEADM_ARGS=" + " ".join(kubelet[3:]) + "\n"
    (directory / "kubeadm-flags.env").write_text(flags)
    images.archive(
        scratch / "images/pause-of-kind.tar", KIND_PAUSE, images.BUSYBOX, ["sleep", pods.PAUSED]
    )
    words = [str(HERE / "kind.sh"), "start", os.environ[KIND_FILES], str(scratch), kubelet[0]]
    subprocess.run(words, check=True)
    try:
        asked = ["docker", "inspect", "--format", "{{.State.Pid}}", "node"]
        pid = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        yield Node(runtime, directory, _entering(pid), Path("/proc", pid, "root"))
    finally:
        subprocess.run([HERE / "kind.sh", "stop"], check=True)


def _entering(pid: str) -> list[str]:
    return ["nsenter", "--target", pid, "--mount", "--net", "--pid", "--cgroup", "--"]


def _prepare(
    scratch: Path, runtime: Runtime, driver: str, cgroup_root: str, *, manifests: str = ""
) -> list[str]:
    """Write all files that a node needs; return the command line of its kubelet."""
    (scratch / "images").mkdir()
    images.archive(scratch / "images/pause.tar", PAUSE, images.BUSYBOX, ["sleep", pods.PAUSED])
    directory = scratch / "node"
    directory.mkdir()
    runtime.prepare(directory, driver)
    _write_network(directory)
    pods.write(directory / "manifests")
    settings = configuration(runtime, driver, cgroup_root, manifests or f"{directory}/manifests")
    (directory / "kubelet.yaml").write_text(yaml.safe_dump(settings))
    return [
        str(assets() / "kubelet"),
        f"--config={directory}/kubelet.yaml",
        f"--root-dir={directory}/kubelet",
        "--hostname-override=node-1",
        f"--node-ip={_ADDRESS}",
        "--v=2",
    ]


def _write_network(directory: Path) -> None:
    (directory / "cni").mkdir()
    (directory / "cni/10-pods.conflist").write_text("""{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{
    "type": "ptp",
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]]}
  }]
}
""")
