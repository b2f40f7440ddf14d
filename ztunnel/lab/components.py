# SPDX-License-Identifier: Apache-2.0
"""What runs on a node besides pods: the real agent and proxy, and the lab's DNS responder.

Each in its own cgroup under the node's, in the node's network namespace, its output in
`<run-dir>/<component>.log`.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztunnel.lab.errors import LabError
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import addresses, netns
from ztunnel.lab.runtime import cgroups, process

_STOP_GRACE = 10.0  # seconds: what the proxy may take to drain
_POLL = 0.05


@dataclass(frozen=True)
class Component:
    """One process of one node."""

    names: LabNames
    node: str
    kind: str
    options: tuple[str, ...] = ()

    @property
    def cgroup(self) -> Path:
        return self.names.node_cgroup(self.node) / self.kind

    @property
    def log(self) -> Path:
        return self.names.run_dir(self.node) / f"{self.kind}.log"

    @property
    def pid(self) -> int | None:
        return cgroups.main_pid(self.cgroup)

    def start(self) -> bool:
        """Start it unless it runs; says whether it was started."""
        if process.running(self.cgroup):
            return False
        argv = [*netns.enter_argv(self.names.node_netns(self.node)), *self._argv()]
        process.spawn(argv, self.cgroup, self.log)
        return True

    def stop(self, *, kill: bool = False) -> None:
        """End it: SIGTERM with time to drain, or SIGKILL at once."""
        if kill:
            cgroups.kill(self.cgroup)
        else:
            cgroups.terminate(self.cgroup, _STOP_GRACE)

    def wait_ready(self, deadline: float) -> None:
        """Return when it serves; LabError with the end of its log when it does not."""
        while True:
            if self.is_ready():
                return
            alive = process.running(self.cgroup)
            if not alive or time.monotonic() > deadline:
                found = f"not ready in time{self._waiting_for()}" if alive else "ended"
                raise LabError(f"{self.node}: {self.kind} {found}; {process.tail(self.log)}")
            time.sleep(_POLL)

    def is_ready(self) -> bool:
        """Whether it serves. The agent answers for the proxy, as only it knows; dead it can't."""
        if not process.running(self.cgroup):
            return False
        if self.kind == "dns":
            return _accepts(self.names.node_netns(self.node), addresses.DNS_ADDRESSES[-1], 53)
        if self.kind == "proxy" and not process.running(self.cgroup.with_name("agent")):
            return True
        return not self._reasons()

    def _waiting_for(self) -> str:
        """What it waits for, as a clause of a message."""
        return "" if self.kind == "dns" else f", waiting for {', '.join(self._reasons())}"

    def _reasons(self) -> list[str]:
        """What the agent waits for, and what is wrong with pods: in a lab all are to serve."""
        status, answer = admin_get(self.names, self.node, "/healthz/ready")
        if status != 200:
            return list((answer or {}).get("waiting_for") or ["its admin socket to answer"])
        _, answer = admin_get(self.names, self.node, "/v1/pods")
        pods = (answer or {}).get("pods")
        if pods is None:
            return ["its admin socket to answer"]
        return [f"{pod['workload']}: {pod['problem']}" for pod in pods if pod["problem"]]

    def _argv(self) -> list[str]:
        common = ["--node", self.node, "--run-dir", str(self.names.run_dir(self.node))]
        if self.kind == "agent":
            return [_ztunnel(), "agent", *common, *self._agent_options(), *self._own_options()]
        if self.kind == "proxy":
            return [_ztunnel(), "proxy", *common, *self.options]
        served = [word for ip in addresses.DNS_ADDRESSES for word in ("--address", ip)]
        module = [sys.executable, "-m", "ztunnel.lab.cluster.dns"]
        return [*module, "--objects", str(self.names.objects), *served]

    def _own_options(self) -> list[str]:
        return [word.replace("{node}", self.node) for word in self.options]

    def _agent_options(self) -> list[str]:
        paths = {
            "--cgroup": self.names.node_cgroup(self.node),
            "--pin-dir": self.names.pin_dir(self.node),
        }
        if "--kubeconfig" not in self.options:
            paths["--manifests"] = self.names.objects
        if "--namespace" not in self.options:  # where a cluster's signer publishes its roots
            paths["--ca-dir"] = self.names.ca
        return [word for option, path in paths.items() for word in (option, str(path))]


def admin_get(names: LabNames, node: str, path: str) -> tuple[int, Any]:
    """GET from the node's agent: status and decoded JSON; (0, None) when it does not answer."""
    connection = _UnixConnection(names.run_dir(node) / "admin.sock")
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        is_json = "json" in response.headers.get("content-type", "")
        return response.status, json.loads(body) if is_json else None
    except (OSError, http.client.HTTPException, ValueError):
        return 0, None
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=2)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _accepts(space: str, ip: str, port: int) -> bool:
    with netns.inside(space):
        try:
            socket.create_connection((ip, port), timeout=1).close()
        except OSError:
            return False
    return True


def _ztunnel() -> str:
    """The `ztunnel` command that belongs to this interpreter."""
    beside = Path(sys.executable).with_name("ztunnel")
    found = str(beside) if beside.exists() else shutil.which("ztunnel")
    if not found:
        raise LabError(
            f"no ztunnel command beside {sys.executable} nor in PATH; "
            "mend: install the package (pip install .) and run ztctl from that environment"
        )
    return found


def of_node(
    names: LabNames,
    node: str,
    *,
    mesh: bool,
    agent_options: Sequence[str] = (),
    proxy_options: Sequence[str] = (),
) -> list[Component]:
    """The components a node should run, in the order of their start."""
    dns = Component(names, node, "dns")
    if not mesh:
        return [dns]
    agent = Component(names, node, "agent", tuple(agent_options))
    return [dns, agent, Component(names, node, "proxy", tuple(proxy_options))]
