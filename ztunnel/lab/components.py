# SPDX-License-Identifier: Apache-2.0
"""The components of a node besides pods: agent, proxy, gateway process and the lab's DNS server.

Each runs in a cgroup of its own below the node's and in the node's network namespace. Its log is
`<run-dir>/<component>.log`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ztunnel.ipc.python_process import python_argv
from ztunnel.lab.admin_client import admin_get
from ztunnel.lab.errors import LabError
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import addresses, netns
from ztunnel.lab.runtime import cgroups, process
from ztunnel.lab.state import LabSettings

STOP_GRACE_S = 10.0  # limits the drain of the proxy
_POLL_INTERVAL_S = 0.05
_NO_ADMIN_SOCKET = "the agent's admin socket"


class ComponentKind(StrEnum):
    """The components, in the order in which they are started."""

    DNS = "dns"
    AGENT = "agent"
    PROXY = "proxy"
    GATEWAY = "gateway"


@dataclass(frozen=True)
class Component:
    """A component of a node. `options`: more arguments of its command line."""

    names: LabNames
    node: str
    kind: ComponentKind
    options: tuple[str, ...] = ()

    @property
    def cgroup(self) -> Path:
        """The component's cgroup."""
        return self.names.node_cgroup(self.node) / self.kind.value

    @property
    def log(self) -> Path:
        """The component's log file."""
        return self.names.run_dir(self.node) / f"{self.kind}.log"

    @property
    def pid(self) -> int | None:
        """The component's main process; None if it does not run."""
        return cgroups.main_pid(self.cgroup)

    def start(self) -> bool:
        """Start the component unless it runs. Returns whether it was started."""
        if process.is_running(self.cgroup):
            return False
        argv = [*netns.enter_argv(self.names.node_netns(self.node)), *self._argv()]
        process.spawn(argv, self.cgroup, self.log)
        return True

    def stop(self, *, kill: bool = False) -> None:
        """Stop the component: with SIGTERM and time to drain, or with SIGKILL."""
        if kill:
            cgroups.kill(self.cgroup)
        else:
            cgroups.terminate(self.cgroup, STOP_GRACE_S)

    def wait_ready(self, deadline: float) -> None:
        """Wait until the component is ready. Raises LabError with the end of its log."""
        while not self.is_ready():
            is_running = process.is_running(self.cgroup)
            if not is_running or time.monotonic() > deadline:
                state = f"is not ready{self._waiting_for()}" if is_running else "has exited"
                raise LabError(f"{self.node}: {self.kind} {state}; {process.tail(self.log)}")
            time.sleep(_POLL_INTERVAL_S)

    def is_ready(self) -> bool:
        """Whether the component is ready.

        The agent reports the readiness of its proxy. If the agent does not run, a running proxy
        counts as ready. The gateway process has no readiness of its own: its effect is the
        readiness of the gateway pods.
        """
        if not process.is_running(self.cgroup):
            return False
        if self.kind is ComponentKind.DNS:
            return _accepts(self.names.node_netns(self.node), addresses.DNS_ADDRESSES[-1], 53)
        if self.kind is ComponentKind.GATEWAY:
            return True
        if self.kind is ComponentKind.PROXY and not process.is_running(
            self.cgroup.with_name(ComponentKind.AGENT.value)
        ):
            return True
        return not self._unready_reasons()

    def _waiting_for(self) -> str:
        if self.kind is ComponentKind.DNS:
            return ""
        return f", waiting for {', '.join(self._unready_reasons())}"

    def _unready_reasons(self) -> list[str]:
        """What the agent waits for, and the problems of pods: in a lab, all must be captured."""
        status, response = admin_get(self.names, self.node, "/healthz/ready")
        if status != 200:
            return list((response or {}).get("waiting_for") or [_NO_ADMIN_SOCKET])
        _, response = admin_get(self.names, self.node, "/v1/pods")
        pods = (response or {}).get("pods")
        if pods is None:
            return [_NO_ADMIN_SOCKET]
        return [f"{pod['workload']}: {pod['problem']}" for pod in pods if pod["problem"]]

    def _argv(self) -> list[str]:
        if self.kind is ComponentKind.DNS:
            served = [word for ip in addresses.DNS_ADDRESSES for word in ("--address", ip)]
            objects = str(self.names.objects)
            return python_argv("ztunnel.lab.cluster.dns", "--objects", objects, *served)
        common = ["--node", self.node, "--run-dir", str(self.names.run_dir(self.node))]
        options = [word.replace("{node}", self.node) for word in self.options]
        if self.kind is ComponentKind.AGENT:
            common += self._agent_argv()
        return python_argv("ztunnel.main", self.kind.value, *common, *options)

    def _agent_argv(self) -> list[str]:
        paths = {
            "--cgroup": self.names.node_cgroup(self.node),
            "--pin-dir": self.names.pin_dir(self.node),
        }
        if "--kubeconfig" not in self.options:
            paths["--manifests"] = self.names.objects
        if "--namespace" not in self.options:  # of the controller, which has the CA
            paths["--ca-dir"] = self.names.ca
        return [word for option, path in paths.items() for word in (option, str(path))]


def components_of(names: LabNames, node: str, settings: LabSettings) -> list[Component]:
    """The components of a node, in the order in which they are started."""
    dns = Component(names, node, ComponentKind.DNS)
    if not settings.mesh:
        return [dns]
    return [
        dns,
        Component(names, node, ComponentKind.AGENT, settings.agent_options),
        Component(names, node, ComponentKind.PROXY, settings.proxy_options),
        Component(names, node, ComponentKind.GATEWAY),
    ]


def start_all(
    components: Iterable[Component], deadline: float, progress: Callable[[str], None]
) -> None:
    """Start all components, then wait until all are ready. Raises LabError."""
    components = list(components)
    for component in components:
        if component.start():
            progress(f"{component.node}: {component.kind} started, pid {component.pid}")
    for component in components:
        component.wait_ready(deadline)
        progress(f"{component.node}: {component.kind} ready")


def _accepts(node_netns: str, ip: str, port: int) -> bool:
    with netns.inside(node_netns):
        try:
            socket.create_connection((ip, port), timeout=1).close()
        except OSError:
            return False
    return True
