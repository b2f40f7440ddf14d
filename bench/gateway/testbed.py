# SPDX-License-Identifier: Apache-2.0
"""A lab with a gateway and, outside the mesh, the proxies it is compared with.

All are reached in the same way: from a machine outside the cluster, through a load balancer of the
lab and the nftables rules of their node.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.comparison import usage
from bench.comparison.results import OURS
from bench.gateway import envoy_config, nginx_proxy, objects
from bench.gateway.cases import ENVOY, ENVOY_FILTERS, NGINX, PATHS, SERVERS, Route
from bench.l7 import nginx
from bench.l7.objects import ENVOY_WORKERS
from bench.l7.plain_programs import PlainPrograms
from bench.l7.testbed import Contender, Note
from bench.l7.wrk import Wrk
from ztunnel.lab import Lab
from ztunnel.lab.runtime import cgroups, sandbox
from ztunnel.lab.server_certificates import tls_secret

_PODS = {ENVOY: "proxy-envoy", ENVOY_FILTERS: "proxy-filters", NGINX: "proxy-nginx"}
_HOST = "gateway.example"  # in the certificate, which wrk does not verify


class Testbed:
    """The lab. `contenders`: by path, those that `names` selects; empty means all."""

    def __init__(
        self,
        lab: Lab,
        directory: Path,
        names: frozenset[str],
        paths: Sequence[Route],
        programs: PlainPrograms,
    ) -> None:
        self.lab = lab
        self.contenders: dict[str, list[Contender]] = {path.name: [] for path in paths}
        self._paths = paths
        self.wrk = Wrk(directory)
        self._directory = directory
        self._names = names
        self._programs = programs
        self._certificate = directory / "tls.crt"
        self._key = directory / "tls.key"

    def write_certificate(self, secret: dict[str, Any]) -> None:
        """Write the certificate for the proxies outside the mesh."""
        self._key.touch(mode=0o600)
        self._key.write_text(secret["stringData"]["tls.key"])
        self._certificate.write_text(secret["stringData"]["tls.crt"])

    def add_ours(self) -> None:
        """Add the gateway."""
        self._add(OURS, self._balancer(objects.DEPLOYMENT, objects.MESHED), self._our_processes)

    def add_others(self) -> None:
        """Add the proxies outside the mesh, with servers outside the mesh."""
        for node in SERVERS:
            argv = nginx.argv(self._directory / f"nginx-{objects.PLAIN}-{node}")
            self._programs.start(f"server-{node}", argv, "server")
        for name, start in (
            (ENVOY, self._start_envoy),
            (ENVOY_FILTERS, self._start_same_filters),
            (NGINX, self._start_nginx),
        ):
            if self.wants(name):
                pid = start()
                balancer = self._balancer(_PODS[name], objects.PLAIN)
                self._add(name, balancer, partial(_with_children, pid))

    def wants(self, name: str) -> bool:
        """Whether a contender is selected."""
        return not self._names or name in self._names

    def _add(self, name: str, balancer: str, processes: Callable[[], tuple[int, ...]]) -> None:
        if not self.wants(name):
            return
        for path in self._paths:
            url = f"{path.scheme}://{balancer}/{path.server}"
            self._programs.await_url(self._outside, url)
            contender = Contender(name, path.name, self._outside, url, processes)
            self.contenders[path.name].append(contender)

    def _outside(self, argv: list[str]) -> list[str]:
        return self.lab.external_argv(argv)

    def _balancer(self, service: str, namespace: str) -> str:
        ingress = self.lab.get("Service", service, namespace)["status"]["loadBalancer"]["ingress"]
        return next(str(each["ip"]) for each in ingress if ":" not in each["ip"])

    def _our_processes(self) -> tuple[int, ...]:
        """Supervisors and workers of both proxies, and the gateway's Envoy."""
        pids = [self.lab.component(node, "proxy").pid for node in SERVERS]
        supervisors = [pid for pid in pids if pid is not None]
        pod = self.lab.pod(f"deploy/{objects.DEPLOYMENT}", objects.MESHED)
        container = pod["spec"]["containers"][0]["name"]
        cgroup = sandbox.describe(self.lab.names, pod).cgroup(self.lab.names) / container
        return tuple(
            dict.fromkeys(
                (
                    *supervisors,
                    *(child for pid in supervisors for child in usage.children(pid)),
                    *cgroups.pids(cgroup),
                )
            )
        )

    def _servers(self) -> dict[str, tuple[str, int]]:
        return {
            node: (self._programs.ip(objects.PLAIN, f"server-{node}"), nginx.PORT)
            for node in SERVERS
        }

    def _start_nginx(self) -> int:
        directory = self._directory / "nginx-proxy"
        argv = nginx_proxy.argv(directory, self._servers(), self._certificate, self._key)
        return self._programs.start(_PODS[NGINX], argv, "nginx-proxy")

    def _start_envoy(self) -> int:
        config = envoy_config.routing_only(self._servers(), self._certificate, self._key)
        return self._start(ENVOY, config)

    def _start_same_filters(self) -> int:
        dump = self._config_dump()
        servers = self._servers()
        routes = {
            name: servers[node]
            for name in envoy_config.cluster_names(dump)
            for node in SERVERS
            if f"server-{node}|" in name
        }
        config = envoy_config.same_filters(dump, routes, self._certificate, self._key)
        return self._start(ENVOY_FILTERS, config)

    def _start(self, name: str, config: dict[str, Any]) -> int:
        return self._programs.start_envoy(name, config, _PODS[name], ENVOY_WORKERS)

    def _config_dump(self) -> dict[str, Any]:
        """The configuration of the gateway, from its Envoy."""
        url = "http://127.0.0.1:15000/config_dump?include_eds"
        gateway = f"deploy/{objects.DEPLOYMENT}"
        done = self.lab.exec(gateway, "curl", "-sf", url, namespace=objects.MESHED, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _with_children(pid: int) -> tuple[int, ...]:
    return (pid, *usage.children(pid))


@contextmanager
def open_testbed(
    names: frozenset[str], note: Note, paths: Sequence[Route] = PATHS
) -> Iterator[Testbed]:
    """Start everything; remove it all afterwards."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ztunnel-bench-")))
        directory.chmod(0o755)  # programs in pods run with fewer privileges
        lab = Lab(f"benchgw{os.getpid() % 100000}")
        stack.callback(lab.down)
        note("a lab of two nodes with a gateway")
        secret = tls_secret(directory / "ca", objects.CERTIFICATE, objects.MESHED, [_HOST])
        made = objects.all_objects(directory, tuple(_PODS.values()), secret)
        if problems := lab.up([]) + lab.apply(*made):
            raise RuntimeError("; ".join(problems))
        programs = PlainPrograms(lab, directory, stack)
        testbed = Testbed(lab, directory, names, paths, programs)
        testbed.write_certificate(secret)
        note("contenders")
        testbed.add_ours()
        testbed.add_others()
        yield testbed
