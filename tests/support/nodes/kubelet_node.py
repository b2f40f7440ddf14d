# SPDX-License-Identifier: Apache-2.0
"""One node: real kubelet, kube-proxy and containerd, in namespaces of their own except for users.

    with Machine(number, directory, netns, server) as node: ...

Its /run, /sys/fs/bpf, netfilter and processes belong to the node and end with `kubelet_node.sh`,
its PID 1. Only cgroups are those of the machine, below one directory that `close` removes.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.support.apiserver.server import ApiServer
from tests.support.nodes.node_config import Settings
from tests.support.waiting import wait_until
from ztunnel.lab.network import netns
from ztunnel.lab.runtime import cgroups

HERE = Path(__file__).resolve().parent
CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "ztnode-"  # of names on the machine, followed by the PID of the test run
KILL_AFTER_S = 20.0  # seconds until remaining processes of a node are killed


class Machine:
    """`space` is its network namespace, already connected; pods get 10.244.<number>.0/24.

    `api` is the address of the API server, used before any service exists.
    """

    def __init__(
        self, number: int, directory: Path, space: str, server: ApiServer, api: str
    ) -> None:
        self.name = f"node-{number}"
        self.address = f"10.99.0.{10 + number}"
        self.directory = directory
        self.cgroup = f"{PREFIX}{os.getpid()}-{self.name}"
        self._pods = f"10.244.{number}.0/24"
        self._netns = space
        self._server = server
        self._api = api
        self._init: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def check(self) -> None:
        """Raises AssertionError if the node has ended."""
        assert self._init is not None
        assert self._init.poll() is None, self.logs()

    @property
    def pid(self) -> str:
        """The PID of the node's PID 1 on the machine."""
        assert self._init is not None
        return Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()[0]

    def enter_argv(self) -> list[str]:
        """The prefix that runs a command on the node, as after a login."""
        return ["nsenter", "--target", self.pid, "--mount", "--net", "--pid", "--"]

    def run(self, *argv: str, timeout: float = 60) -> str:
        """Run a command on the node; return its output."""
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
        """The end of the logs of all programs of the node."""
        return "\n".join(
            f"--- {self.name} {path.name}\n{path.read_text(errors='replace')[-4000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )

    def _start(self) -> None:
        directory, server = self.directory, self._server
        directory.mkdir()
        for hierarchy in hierarchies():
            _make_cgroup(hierarchy / self.cgroup)
        own = cgroups.cgroup2_root() / self.cgroup / "system"
        own.mkdir()
        settings = Settings(self.name, directory, self.cgroup, self._pods, server.pki.ca)
        for name, text in settings.files().items():
            self._write(name, text)
        users = {"kubelet": f"system:node:{self.name}", "kube-proxy": "system:kube-proxy"}
        for program, user in users.items():
            groups = ["system:nodes"] if program == "kubelet" else []
            login = server.kubeconfig(user, groups, url=f"https://{self._api}")
            self._write(f"{program}.kubeconfig", login.read_text())
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._init = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *netns.enter_argv(self._netns),
                *argv,
                *(
                    HERE / "kubelet_node.sh",
                    directory,
                    server.binaries,
                    self.name,
                    self.address,
                    own,
                ),
            ],
            stdin=subprocess.DEVNULL,
            stdout=(directory / "machine.log").open("wb"),
            stderr=subprocess.STDOUT,
        )

    def _end(self) -> None:
        if self._init is not None:
            self._init.send_signal(signal.SIGKILL)  # kills its child, the node's PID 1
            self._init.wait(KILL_AFTER_S)
        for hierarchy in hierarchies():
            _remove_cgroup(hierarchy / self.cgroup)

    def _write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)


def hierarchies() -> list[Path]:
    """Every mounted cgroup hierarchy, version 1 or 2."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] in {"cgroup", "cgroup2"}:
            found.append(Path(fields.split()[4]))
    return found


def sweep() -> None:
    """Remove the cgroups of killed test runs."""
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
    for name in ("cpuset.cpus", "cpuset.mems"):  # empty in a new cgroup of version 1
        own, above = path / name, path.parent / name
        if above.exists() and own.exists() and not own.read_text().strip():
            own.write_text(above.read_text())


def _remove_cgroup(path: Path) -> None:
    """Retry the removal until its processes have ended."""
    wait_until(lambda: _is_removed(path), f"{path} to be empty", timeout_s=KILL_AFTER_S)


def _is_removed(path: Path) -> bool:
    for directory in (*sorted(path.rglob("*/"), reverse=True), path):
        with suppress(OSError):
            directory.rmdir()
    return not path.exists()
