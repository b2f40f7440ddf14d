# SPDX-License-Identifier: Apache-2.0
"""An agent under measurement: its process, a worker on its link, and a running pod.

The agent, its BPF maps and its link are real. The worker runs in this process; it decodes and
applies the messages of the agent as a proxy does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.ports import free_ports
from ztunnel.datapath import requirements
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.ipc import messages
from ztunnel.ipc.channel import Channel
from ztunnel.ipc.python_process import python_argv
from ztunnel.mesh.state import MeshState

NODE = "bench"  # node of the agent, which has one captured pod
HERE = "10.200.0.1"  # address of that pod


class Worker:
    """The worker end of the agent link: applies each message and records its time."""

    def __init__(self, path: Path) -> None:
        self.state = MeshState()
        self.complete = threading.Event()
        self.bytes = self.deltas = self.resets = 0
        self.seen: dict[str, float] = {}  # value of the label `bench` → time it was seen
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        while sock.connect_ex(str(path)) == errno.ECONNREFUSED:  # bound, not listening yet
            time.sleep(0.002)
        self._channel: Channel[Any] = Channel(sock, messages.ToWorker)  # type: ignore[arg-type]  # a union is no type
        self._channel.send(messages.Hello(version="bench", pid=os.getpid(), worker=0))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (received := self._channel.receive()) is not None:
            message, fds = received
            for fd in fds:
                os.close(fd)
            if isinstance(message, messages.MeshDelta):
                self._take(message)
            elif isinstance(message, messages.PodAdded):
                self._channel.send(messages.PodReady(message.pod_uid))

    def _take(self, delta: messages.MeshDelta) -> None:
        self.deltas += 1
        self.resets += delta.reset
        self.state.apply(delta)
        now = time.monotonic()
        for workload in delta.workloads:
            label = workload.labels.get("bench")
            if label is not None:
                self.seen.setdefault(label, now)
        if delta.complete:
            self.complete.set()


class AgentProcess:
    """`ztunnel agent` with its own cgroup, pins and run directory."""

    def __init__(self, stack: ExitStack, kubeconfig: Path, directory: Path) -> None:
        """Creates `directory` for the agent."""
        directory.mkdir()
        tag = f"zt-bench-{os.getpid()}-{directory.name}"
        self.cgroup = requirements.cgroup2_root() / tag
        self.pin_dir = requirements.BPFFS / tag
        self.run_dir = directory / "run"
        self.log = directory / "agent.log"
        self._prepare(stack)
        metrics, health = free_ports(2)
        options = {
            "--node": NODE,
            "--kubeconfig": kubeconfig,
            "--ca-dir": directory / "ca",
            "--cgroup": self.cgroup,
            "--pin-dir": self.pin_dir,
            "--run-dir": self.run_dir,
            "--metrics-bind-address": "127.0.0.1",
            "--metrics-port": metrics,
            "--health-port": health,
        }
        words = [str(word) for pair in options.items() for word in pair]
        with self.log.open("wb") as log:
            self.began = time.monotonic()
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *python_argv("ztunnel.main", "agent", *words)],
                stdout=log,
                stderr=log,
            )
        stack.callback(self.end)

    def _prepare(self, stack: ExitStack) -> None:
        if not requirements.bpffs_mount().mounted:
            subprocess.run(["mount", "-t", "bpf", "bpf", str(requirements.BPFFS)], check=True)
            stack.callback(subprocess.run, ["umount", str(requirements.BPFFS)], check=False)
        self.cgroup.mkdir()
        stack.callback(remove_cgroup, self.cgroup)
        stack.callback(shutil.rmtree, self.pin_dir, ignore_errors=True)

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def until(self, condition: Callable[[], object], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{what}: not in time\n{self.log.read_text()[-3000:]}")
            time.sleep(0.002)

    def memory(self) -> dict[str, int]:
        """Memory in MB: resident and peak."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
        return {name: int(value.split()[0]) * 1024 // 1_000_000 for name, value in found.items()}

    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def remove_cgroup(path: Path) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        deadline = time.monotonic() + 5
        while Path(directory).exists():
            with contextlib.suppress(OSError):
                os.rmdir(directory)
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)


class Here:
    """The pod of the node: a process in its own network namespace and the cgroup of the pod."""

    def __init__(self, agent: AgentProcess, uid: str) -> None:
        self._agent = agent
        self._place = agent.cgroup / "kubepods" / f"pod{uid}" / "app"

    def __enter__(self) -> Here:
        self._place.mkdir(parents=True)
        self._process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        (self._place / "cgroup.procs").write_text(str(self._process.pid))
        self._maps = Maps(self._agent.pin_dir, read_only=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._maps.close()
        self._process.kill()
        self._process.wait()

    def until(self, captured: bool) -> None:
        """Wait until the BPF map contains the pod, or no longer contains it."""

        def is_so() -> bool:
            return captured == any(HERE in entry.addresses for entry in self._maps.pods())

        self._agent.until(is_so, "the kernel's map", 20)
