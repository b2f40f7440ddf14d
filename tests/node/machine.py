# SPDX-License-Identifier: Apache-2.0
"""One node: a real kubelet and containerd in network, mount and process namespaces of their own.

    with Machine(number, directory, netns, server) as node: ...

What the two do to "the machine" they do to that node: its /run, /sys/fs/bpf, netfilter, and all
processes go with `machine.sh`, its pid 1. Only cgroups are the machine's, below one directory that
`close` removes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import yaml

from tests.cluster.server import ApiServer
from ztunnel.lab import netns

HERE = Path(__file__).resolve().parent
CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "ztnode-"  # of what a node needs on the machine: the pid of the test run follows
PAUSE = "ztunnel.test/pause:1"
END = 20.0  # seconds until what is left of a node is killed
_LIMITS = {"memory.available": "1Mi", "nodefs.available": "1Mi", "imagefs.available": "1Mi"}


class Machine:
    """`netns` is there and wired; pods get addresses of 10.244.<number>.0/24."""

    def __init__(self, number: int, directory: Path, space: str, server: ApiServer) -> None:
        self.name = f"node-{number}"
        self.address = f"10.99.0.{10 + number}"
        self.directory = directory
        self.cgroup = f"{PREFIX}{os.getpid()}-{self.name}"
        self._pods = f"10.244.{number}.0/24"
        self._netns = space
        self._server = server
        self._init: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        directory = self.directory
        directory.mkdir()
        for hierarchy in hierarchies():
            _make_cgroup(hierarchy / self.cgroup)
        self._write("containerd.toml", _containerd(directory))
        self._write("kubelet.yaml", yaml.safe_dump(self._kubelet()))
        (directory / "cni").mkdir()
        self._write("cni/10-pods.conflist", _network(directory, self._pods))
        login = self._server.kubeconfig(
            f"system:node:{self.name}",
            ["system:nodes"],
            url=f"https://10.96.0.1:{self._server.port}",
        )
        self._write("kubeconfig", login.read_text())
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._init = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *netns.enter_argv(self._netns),
                *argv,
                *(HERE / "machine.sh", directory, self._server.binaries / "kubelet"),
                *(self.name, self.address),
            ],
            stdin=subprocess.DEVNULL,
            stdout=(directory / "machine.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._init is not None:
            self._init.send_signal(signal.SIGKILL)  # takes its child, the node's pid 1, with it
            self._init.wait(END)
        for hierarchy in hierarchies():
            _remove_cgroup(hierarchy / self.cgroup)

    def check(self) -> None:
        """Raises AssertionError when the node has ended."""
        assert self._init is not None
        assert self._init.poll() is None, self.logs()

    @property
    def pid(self) -> str:
        """What the machine calls the node's pid 1."""
        assert self._init is not None
        return Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()[0]

    def enter_argv(self) -> list[str]:
        """What runs a command on the node, as a person who is logged in there."""
        return ["nsenter", "--target", self.pid, "--mount", "--net", "--pid", "--"]

    def run(self, *argv: str, timeout: float = 60) -> str:
        """Run a command on the node; its output."""
        done = subprocess.run(
            [*self.enter_argv(), *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{argv} on {self.name}: {done.stderr[-2000:]}{done.stdout}"
        return done.stdout

    def logs(self) -> str:
        """The end of all that the node's programs said."""
        return "\n".join(
            f"--- {self.name} {path.name}\n{path.read_text(errors='replace')[-4000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )

    def _write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text)

    def _kubelet(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._server.pki.ca)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "enforceNodeAllocatable": ["pods"],
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "failSwapOn": False,
            "failCgroupV1": False,
            # it may lack the right to lower its OOM score and to write sysctls, as here
            "featureGates": {"KubeletInUserNamespace": True},
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            "evictionHard": _LIMITS,
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": False,
            "resolvConf": "/dev/null",
            "volumePluginDir": str(self.directory / "plugins"),
            "podLogsDir": str(self.directory / "pods"),
            "syncFrequency": "5s",
            "nodeStatusUpdateFrequency": "5s",
        }


def _containerd(directory: Path) -> str:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "{directory}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[{cri}]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{directory}/cni"
"""


def _network(directory: Path, pods: str) -> str:
    return f"""{{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{{
    "type": "ptp",
    "ipam": {{
      "type": "host-local",
      "dataDir": "{directory}/ipam",
      "ranges": [[{{"subnet": "{pods}"}}]],
      "routes": [{{"dst": "0.0.0.0/0"}}]
    }}
  }}]
}}
"""


def hierarchies() -> list[Path]:
    """Every mounted cgroup hierarchy, of version 1 or 2."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] in {"cgroup", "cgroup2"}:
            found.append(Path(fields.split()[4]))
    return found


def sweep() -> None:
    """Remove what a test run that was killed left."""
    for name in netns.with_prefix(PREFIX):
        if not _is_live(name):
            netns.remove(name)
    for hierarchy in hierarchies():
        for path in hierarchy.glob(f"{PREFIX}*"):
            if not _is_live(path.name):
                _remove_cgroup(path)


def _is_live(name: str) -> bool:
    return Path("/proc", name.removeprefix(PREFIX).partition("-")[0]).exists()


def _make_cgroup(path: Path) -> None:
    path.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):  # empty in a new one of version 1
        own, above = path / name, path.parent / name
        if above.exists() and own.exists() and not own.read_text().strip():
            own.write_text(above.read_text())


def _remove_cgroup(path: Path) -> None:
    """Its processes are gone or going: a removal is tried until it works."""
    deadline = time.monotonic() + END
    while path.exists():
        for directory in sorted(path.rglob("*/"), reverse=True):
            with suppress(OSError):
                directory.rmdir()
        with suppress(OSError):
            path.rmdir()
        assert time.monotonic() < deadline, f"{path} is not empty"
        time.sleep(0.02)
