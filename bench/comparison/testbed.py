# SPDX-License-Identifier: Apache-2.0
"""A lab of two nodes with enrolled pods, and the same pods outside the mesh, on each path.

                    client's node    server's node
    cross-node      node1            node2
    same-node       node1            node1

The pods outside the mesh have the same network, but their cgroups are outside of those that the
BPF programs are attached to. The proxies of peers run in their namespaces. Everything is removed
at the end.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.comparison import certificates, usage
from bench.comparison.load import Load, Place, build
from bench.comparison.measurements import CROSS, SAME
from bench.comparison.results import OURS
from bench.peers.peer import Certificates, Peer, PeerError, Route
from bench.peers.registry import PEERS
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.lab import Lab
from ztunnel.lab.network import netns
from ztunnel.lab.runtime import process

PORT = 7000
_MESHED, _PLAIN = "meshed", "plain"
_CLIENT, _SERVERS = "client", {CROSS: "far", SAME: "near"}
_NODES = {"client": "node1", "near": "node1", "far": "node2"}
_FIRST_PEER_PORT = 20000
_DIRECT_SECONDS = 10.0

Note = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A contender on one path: where its client runs, the address to dial, and its processes."""

    name: str
    path: str
    place: Place
    address: tuple[str, int]
    processes: tuple[int, ...]  # all processes of the contender
    proxies: tuple[int, ...]  # the proxies, which carry the bytes


class Testbed:
    """The lab with all contenders."""

    def __init__(self, lab: Lab, load: Load, directory: Path, names: frozenset[str]) -> None:
        """`names`: the contenders to measure; empty means all."""
        self.lab = lab
        self.load = load
        self.contenders: dict[str, list[Contender]] = {CROSS: [], SAME: []}
        self.absent: dict[str, str] = {}
        self._directory = directory
        self._names = names

    def wants(self, name: str) -> bool:
        """Whether a contender is selected."""
        return not self._names or name in self._names

    def attached(self, argv: list[str]) -> list[str]:
        """A process of node1 that is not enrolled, in a cgroup with BPF programs attached."""
        return self.lab.node_argv("node1", argv)

    def detached(self, argv: list[str]) -> list[str]:
        """The same in a cgroup of equal depth without BPF programs."""
        cgroup = self.lab.names.cgroup / "bare" / "system"
        cgroup.mkdir(parents=True, exist_ok=True)
        space = self.lab.names.node_netns("node1")
        return process.in_cgroup_argv(cgroup, [*netns.enter_argv(space), *argv])

    def pids(self, kind: str) -> tuple[int, ...]:
        """The agents, or the supervisors of the proxies; node1 first."""
        found = [self.lab.component(node, kind).pid for node in ("node1", "node2")]
        return tuple(pid for pid in found if pid is not None)

    def add_ours(self) -> None:
        """Add ztunnel on both paths."""
        if not self.wants(OURS):
            return
        supervisors, agents = self.pids("proxy"), self.pids("agent")
        proxies = tuple(pid for one in supervisors for pid in usage.children(one))
        for path, server in _SERVERS.items():
            address = (_ip(self.lab, server, _MESHED), PORT)
            spend = (*supervisors, *proxies, *agents)
            ours = Contender(OURS, path, self._in_our_pod, address, spend, proxies)
            self.contenders[path].append(ours)
            if path == SAME:
                self._wait_for_bypass(ours)

    def serve_plain(self, stack: ExitStack) -> None:
        """Start the servers of the pods outside the mesh."""
        for server in _SERVERS.values():
            argv = netns.enter_argv(self.lab.names.pod_netns(_PLAIN, server))
            running = subprocess.Popen(
                [*argv, *self.load.argv("server", PORT)], start_new_session=True
            )
            stack.callback(_end, running)

    def add_peers(self, stack: ExitStack, note: Note) -> None:
        """Add the peers that can run; record the others as absent."""
        for number, kind in enumerate(PEERS):
            if not self.wants(kind.name):
                continue
            if why := kind().absent():
                self.absent[kind.name] = why
                continue
            made = certificates.make(self._directory / f"{kind.name}-certificates", kind.curve)
            for path in _SERVERS:
                peer = kind()
                try:
                    peer.start(self._route(number, peer, path, made))
                except PeerError as error:
                    self.absent[peer.name] = str(error)
                    note(str(error))
                    break
                stack.callback(peer.stop)
                self.contenders[path].append(self._contender(peer, path))

    def _contender(self, peer: Peer, path: str) -> Contender:
        space = self.lab.names.pod_netns(_PLAIN, _CLIENT)
        return Contender(
            peer.name,
            path,
            lambda argv: [*netns.enter_argv(space), *argv],
            peer.address,
            peer.processes,
            peer.processes,
        )

    def _route(self, number: int, peer: Peer, path: str, made: Certificates) -> Route:
        server = _SERVERS[path]
        port = _FIRST_PEER_PORT + 10 * number + list(_SERVERS).index(path)
        ip = _ip(self.lab, server, _PLAIN)
        return Route(
            client_netns=self.lab.names.pod_netns(_PLAIN, _CLIENT),
            server_netns=self.lab.names.pod_netns(_PLAIN, server),
            listen=("127.0.0.1", port),
            tunnel=(ip, port),
            forward=(ip, PORT),
            certificates=made,
            directory=self._directory / f"{peer.name}-{path}",
        )

    def _in_our_pod(self, argv: list[str]) -> list[str]:
        return self.lab.exec_argv(_CLIENT, argv, namespace=_MESHED)[0]

    def _wait_for_bypass(self, ours: Contender) -> None:
        """Connect until the kernel bypasses the proxy for the pair."""
        deadline = time.monotonic() + _DIRECT_SECONDS
        while not self._direct():
            if time.monotonic() > deadline:
                raise RuntimeError("same-node connections do not bypass the proxy")
            self.load.run(ours.place, "connect", *ours.address, 1, 0.05, seconds=1)

    def _direct(self) -> int:
        maps = Maps(self.lab.names.pin_dir("node1"), read_only=True)
        try:
            return sum(counters.same_node_bypass for counters in maps.pod_stats().values())
        finally:
            maps.close()


@contextmanager
def open_testbed(names: frozenset[str], note: Note) -> Iterator[Testbed]:
    """Start everything and warm it up; remove it all afterwards."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ztunnel-bench-")))
        directory.chmod(0o755)  # programs in pods run with fewer privileges
        load = Load(build(directory))
        lab = Lab(f"bench{os.getpid()}")
        stack.callback(lab.down)
        note("a lab of two nodes")
        problems = lab.up([]) + lab.apply(*_objects(load))
        if problems:
            raise RuntimeError("; ".join(problems))
        _spare_ports(lab)
        testbed = Testbed(lab, load, directory, names)
        testbed.serve_plain(stack)
        note("peers")
        testbed.add_ours()
        testbed.add_peers(stack, note)
        yield testbed


def _spare_ports(lab: Lab) -> None:
    """Clients that close first leave their ports in TIME_WAIT for a minute. Without more ports and
    their reuse, the benchmark would measure the search for a free port."""
    for namespace in (_MESHED, _PLAIN):
        for pod in _NODES:
            with netns.inside(lab.names.pod_netns(namespace, pod)):
                Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10000 65535")
                Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("1")


def _objects(load: Load) -> list[dict[str, Any]]:
    serve = load.argv("server", PORT)
    made: list[dict[str, Any]] = [
        _namespace(_MESHED, {"istio.io/dataplane-mode": "ambient"}),
        _namespace(_PLAIN, {}),
    ]
    for name in _NODES:
        sleep = ["sleep", "infinity"]
        made.append(_pod(_MESHED, name, sleep if name == _CLIENT else serve))
        made.append(_pod(_PLAIN, name, sleep))
    return made


def _namespace(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }


def _pod(namespace: str, name: str, command: list[str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": _NODES[name]},
            "containers": [{"name": "app", "image": "debian", "command": command}],
        },
    }


def _ip(lab: Lab, pod: str, namespace: str) -> str:
    found = lab.pod(pod, namespace)["status"]["podIPs"]
    return next(str(each["ip"]) for each in found if ":" not in each["ip"])


def _end(running: subprocess.Popen[bytes]) -> None:
    running.terminate()
    running.wait()
