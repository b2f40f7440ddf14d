# SPDX-License-Identifier: Apache-2.0
"""A small cluster: real control plane and nodes on a bridge of their own.

    with Nodes(directory, binaries) as cluster:     # the thread enters the control plane's netns
        cluster.server.kubectl("get", "nodes")
        cluster.machines[0].run("ip", "route")

etcd, kube-apiserver, kube-controller-manager and kube-scheduler run in one network namespace, each
node in its own; the namespace of the control plane also acts as the outside of the cluster. Pods
have routes to each other. kube-proxy implements services, including that of the API server.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from tests.support.apiserver.control_plane import wait_until
from tests.support.apiserver.server import ApiServer
from tests.support.nodes.kubelet_node import PREFIX, Machine, sweep
from ztunnel.lab.network import netns
from ztunnel.lab.runtime import cgroups, mounts

SERVICE, CONTROL, PORT = "10.96.0.1", "10.99.0.1", 6443
COUNT = 2
BRIDGE = "br0"


class Nodes:
    """`directory`/images contains OCI archives that every node imports."""

    def __init__(self, directory: Path, binaries: Path, count: int = COUNT) -> None:
        self.directory = directory
        self._binaries = binaries
        self._count = count
        self._stack = ExitStack()
        self.prefix = f"{PREFIX}{os.getpid()}"
        self.machines: list[Machine] = []

    def __enter__(self) -> Nodes:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @contextmanager
    def no_controllers(self) -> Iterator[None]:
        """Pause the controllers; changes made meanwhile take effect afterwards."""
        self._manager.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._manager.send_signal(signal.SIGCONT)

    def wait_ready(self, within: float) -> None:
        """Wait until every node is Ready."""
        try:
            wait_until(self._is_ready, "every node is Ready", timeout_s=within)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.diagnostics()}") from error

    def diagnostics(self) -> str:
        """Logs and states that help to debug a failure."""
        seen = [
            self.server.try_kubectl(*words.split()).stdout
            for words in (
                "get pods -A -o wide",
                "get events -A",
                "logs -n ztunnel-system -l app.kubernetes.io/name=ztunnel-agent --tail=30 --prefix",
                "logs -n ztunnel-system -l app.kubernetes.io/name=ztunnel-proxy --tail=30 --prefix",
            )
        ]
        return "\n".join([*seen, *(machine.logs() for machine in self.machines)])

    def _is_ready(self) -> bool:
        for machine in self.machines:
            machine.check()
        path = "{.items[*].status.conditions[?(@.type=='Ready')].status}"
        words = self.server.kubectl("get", "nodes", "-o", f"jsonpath={path}").split()
        return words == ["True"] * self._count

    def _start(self) -> None:
        control = self._control_plane()
        self._stack.enter_context(netns.inside(control))
        directory = self.directory / "control"
        directory.mkdir()
        self.server = ApiServer(
            directory,
            self._binaries,
            addresses=(CONTROL, SERVICE),
            port=PORT,
            options=(
                "--kubelet-preferred-address-types=InternalIP",
                *(
                    f"--kubelet-client-{part}={directory}/kubelet-client.{end}"
                    for part, end in (("certificate", "crt"), ("key", "key"))
                ),
            ),
        )
        self.server.pki.client("kubelet-client", ["system:masters"])
        self._stack.enter_context(self.server)
        self._controllers()
        for number in range(1, self._count + 1):
            space = self._wired(control, number)
            own = self.directory / f"node-{number}"
            machine = Machine(number, own, space, self.server, f"{CONTROL}:{PORT}")
            self.machines.append(self._stack.enter_context(machine))

    def _controllers(self) -> None:
        server = self.server
        login = f"--kubeconfig={server.admin_kubeconfig}"
        loopback = ("--bind-address=127.0.0.1", "--leader-elect=false", login)
        self._manager = server.spawn(
            "kube-controller-manager",
            *loopback,
            f"--service-account-private-key-file={server.account_key}",
            f"--root-ca-file={server.pki.ca}",
            "--use-service-account-credentials=true",
        )
        for process in (self._manager, server.spawn("kube-scheduler", *loopback)):
            self._stack.callback(_end, process)

    def _control_plane(self) -> str:
        name = f"{self.prefix}-control"
        mounts.ensure(bpffs=False)
        self._stack.callback(mounts.release, cgroups.cgroup2_root())
        sweep()
        self._netns(name)
        for words in (
            f"link add {BRIDGE} type bridge",
            f"link set {BRIDGE} up",
            f"addr add {CONTROL}/24 dev {BRIDGE}",
        ):
            netns.run(name, ["ip", *words.split()])
        return name

    def _wired(self, control: str, number: int) -> str:
        """The namespace of a node on the bridge, with routes to the pods of the others."""
        name = f"{self.prefix}-node-{number}"
        self._netns(name)
        link = f"link add eth0 type veth peer name node{number} netns {control}"
        netns.run(name, ["ip", *link.split()])
        netns.run(control, ["ip", "link", "set", f"node{number}", "up", "master", BRIDGE])
        netns.run(control, _way(number))
        for words in (
            f"addr add 10.99.0.{10 + number}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {CONTROL}",
        ):
            netns.run(name, ["ip", *words.split()])
        for other in range(1, self._count + 1):
            if other != number:
                netns.run(name, _way(other))
        return name

    def _netns(self, name: str) -> None:
        self._stack.callback(netns.remove, name)
        netns.create(name, {"ipv4/ip_forward": "1"})
        netns.run(name, ["ip", "link", "set", "lo", "up"])


def _way(number: int) -> list[str]:
    return f"ip route add 10.244.{number}.0/24 via 10.99.0.{10 + number}".split()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(20)
