# SPDX-License-Identifier: Apache-2.0
"""A lab with the contenders of the benchmark on each path. Removes everything at the end.

The pods outside the mesh have the same network, but their processes are outside of the cgroups
that the BPF programs are attached to.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.comparison import usage
from bench.comparison.results import OURS
from bench.l7 import cases, envoy_config, hbone_envoy, nginx, objects, workload_certificate
from bench.l7.cases import PATHS
from bench.l7.plain_programs import PlainPrograms
from bench.l7.wrk import Place, Wrk
from ztunnel.l7.names import PeerState
from ztunnel.lab import Lab
from ztunnel.lab.network import netns
from ztunnel.lab.runtime import cgroups, sandbox

_BARE_PORT, _FILTERS_PORT = 9000, 9100  # of the Envoys without a mesh; plus the path's index
_PEER = {  # the client, as the mesh describes it to a waypoint
    PeerState.IDENTITY: objects.identity("default"),
    PeerState.WORKLOAD: "client",
    PeerState.NAMESPACE: "meshed",
    PeerState.APP: "client",
    PeerState.VERSION: "latest",
}

Note = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A contender on one path. `processes` returns the processes whose CPU time counts."""

    name: str
    path: str
    place: Place
    url: str
    processes: Callable[[], tuple[int, ...]]


class Testbed:
    """The lab. `contenders`: by path, those that `names` selects; empty means all."""

    def __init__(
        self, lab: Lab, directory: Path, names: frozenset[str], programs: PlainPrograms
    ) -> None:
        self.lab = lab
        self.contenders: dict[str, list[Contender]] = {path.name: [] for path in PATHS}
        self.wrk = Wrk(directory)
        self._directory = directory
        self._names = names
        self._programs = programs

    def wants(self, name: str) -> bool:
        """Whether a contender is selected."""
        return not self._names or name in self._names

    def add_ours(self) -> None:
        """Add the mesh with and without waypoints."""
        for path in PATHS:
            waypoint = partial(self._waypoint_processes, path)
            self._add(OURS, path.name, self._meshed, self._service(path.service), waypoint)
            direct = self._service(f"{path.server}-l4")
            self._add(cases.L4, path.name, self._meshed, direct, self._mesh_processes)

    def add_plain(self) -> None:
        """Add the connections without a mesh: direct, and through an Envoy."""
        for node in ("node1", "node2"):
            argv = nginx.argv(self._directory / f"nginx-{node}")
            self._programs.start(f"server-{node}", argv, "server")
        for path in PATHS:
            server = self._programs.ip("plain", f"server-{path.server}")
            url = f"http://{server}:{nginx.PORT}/"
            self._add(cases.NO_MESH, path.name, self._plain, url, partial(_same, ()))

    def add_envoys(self) -> None:
        """Add the Envoys without a mesh: with the router alone, and with a waypoint's filters."""
        variants = (
            (cases.ENVOY, _BARE_PORT, self._bare_config),
            (cases.ENVOY_FILTERS, _FILTERS_PORT, self._filters_config),
        )
        for name, first, make in variants:
            if not self.wants(name):
                continue
            for node in ("node1", "node2"):
                ports = {first + i: p for i, p in enumerate(PATHS) if p.proxy == node}
                pid = self._start_envoy(f"{name}-{node}", make(ports), f"proxy-{node}")
                for port, path in ports.items():
                    url = f"http://{self._programs.ip('plain', f'proxy-{node}')}:{port}/"
                    self._programs.await_url(self._plain, url)
                    self._add(name, path.name, self._plain, url, partial(_same, (pid,)))

    def add_hbone_envoys(self) -> None:
        """Add the experiment: Envoys that terminate and originate HBONE themselves."""
        if not self.wants(cases.ENVOY_HBONE):
            return
        made = workload_certificate.write(
            self._directory / "hbone", self.lab.names.ca, objects.identity("waypoint")
        )
        for path in PATHS:
            pod = f"hbone-{path.service}"
            dump = self._config_dump(path)
            filters = envoy_config.copied_filters(dump, _route(path), "app", _PEER)
            server = (self._programs.ip("meshed", f"server-{path.server}"), nginx.PORT)
            config = hbone_envoy.config(made, filters, server, objects.identity("default"))
            pid = self._start_envoy(pod, config, pod, namespace="meshed")
            url = f"http://{self._programs.ip('meshed', pod)}:{nginx.PORT}/"
            mesh = partial(self._hbone_processes, pid)
            self._add(cases.ENVOY_HBONE, path.name, self._meshed, url, mesh)

    def _add(
        self,
        name: str,
        path: str,
        place: Place,
        url: str,
        processes: Callable[[], tuple[int, ...]],
    ) -> None:
        if self.wants(name):
            self.contenders[path].append(Contender(name, path, place, url, processes))

    # -- places and processes --------------------------------------------------------------------

    def _meshed(self, argv: list[str]) -> list[str]:
        return self.lab.exec_argv("client", argv, namespace="meshed")[0]

    def _plain(self, argv: list[str]) -> list[str]:
        return [*netns.enter_argv(self.lab.names.pod_netns("plain", "client")), *argv]

    def _mesh_processes(self) -> tuple[int, ...]:
        """Supervisors and workers of both proxies."""
        pids = [self.lab.component(node, "proxy").pid for node in ("node1", "node2")]
        supervisors = [pid for pid in pids if pid is not None]
        return (*supervisors, *(child for pid in supervisors for child in usage.children(pid)))

    def _waypoint_processes(self, path: cases.Path) -> tuple[int, ...]:
        pod = self.lab.pod(f"deploy/{objects.waypoint(path)}", "meshed")
        container = pod["spec"]["containers"][0]["name"]
        cgroup = sandbox.describe(self.lab.names, pod).cgroup(self.lab.names) / container
        return (*self._mesh_processes(), *cgroups.pids(cgroup))

    def _hbone_processes(self, pid: int) -> tuple[int, ...]:
        return (*self._mesh_processes(), pid)

    # -- Envoys outside the mesh -----------------------------------------------------------------

    def _bare_config(self, ports: Mapping[int, cases.Path]) -> dict[str, Any]:
        return envoy_config.routing_only({p: self._plain_server(ports[p]) for p in ports})

    def _filters_config(self, ports: Mapping[int, cases.Path]) -> dict[str, Any]:
        path = next(iter(ports.values()))
        routes = {p: (_route(ports[p]), self._plain_server(ports[p])) for p in ports}
        return envoy_config.same_filters(self._config_dump(path), routes, _PEER)

    def _plain_server(self, path: cases.Path) -> tuple[str, int]:
        return self._programs.ip("plain", f"server-{path.server}"), nginx.PORT

    def _start_envoy(
        self, name: str, config: dict[str, Any], pod: str, namespace: str = "plain"
    ) -> int:
        return self._programs.start_envoy(name, config, pod, objects.ENVOY_WORKERS, namespace)

    def _config_dump(self, path: cases.Path) -> dict[str, Any]:
        """The configuration of the waypoint of a path, from its Envoy."""
        url = "http://127.0.0.1:15000/config_dump?include_eds"
        waypoint = f"deploy/{objects.waypoint(path)}"
        done = self.lab.exec(waypoint, "curl", "-sf", url, namespace="meshed", check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _service(self, name: str) -> str:
        ip = self.lab.get("Service", name, "meshed")["spec"]["clusterIP"]
        return f"http://{ip}/"


def _route(path: cases.Path) -> str:
    return f"meshed/{path.service}|80"


def _same(pids: tuple[int, ...]) -> tuple[int, ...]:
    return pids


@contextmanager
def open_testbed(names: frozenset[str], note: Note) -> Iterator[Testbed]:
    """Start everything; remove it all afterwards."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ztunnel-bench-")))
        directory.chmod(0o755)  # programs in pods run with fewer privileges
        lab = Lab(f"benchl7{os.getpid() % 100000}")
        stack.callback(lab.down)
        note("a lab of two nodes with two waypoints")
        if problems := lab.up([]) + lab.apply(*objects.all_objects(directory)):
            raise RuntimeError("; ".join(problems))
        testbed = Testbed(lab, directory, names, PlainPrograms(lab, directory, stack))
        note("contenders")
        testbed.add_ours()
        testbed.add_plain()
        testbed.add_envoys()
        testbed.add_hbone_envoys()
        yield testbed
