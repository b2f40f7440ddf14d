# SPDX-License-Identifier: Apache-2.0
"""The time from the agent reading a changed object to Envoy acknowledging the configuration.

    .venv/bin/python bench/gateway_config.py [--services 500] [--routes 4] [--rounds 30]

One waypoint has 500 Services with 4 HTTPRoutes each. The agent's cluster view receives the objects;
the gateway process receives them over the real link, compiles them, and serves a real Envoy by
delta ADS. Prints milliseconds, and the resident memory of the process and of Envoy. Needs root: it
runs in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from ztunnel.agent.gateways.broadcast import L7Broadcast
from ztunnel.agent.gateways.pods import GatewayPods
from ztunnel.agent.gateways.queries import GatewayQueries
from ztunnel.agent.gateways.rejections import RejectedConfig
from ztunnel.agent.pods.netns_finder import NetnsHandle
from ztunnel.agent.pods.pod import Pod
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.workers.handlers import MessageHandlers
from ztunnel.agent.workers.mesh_broadcast import MeshBroadcast
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.agent.workers.server import AgentLinkServer
from ztunnel.datapath import netns
from ztunnel.gateway.pod import GatewayPod
from ztunnel.gateway.process import GatewayProcess
from ztunnel.gateway.xds import descriptors
from ztunnel.ipc.gateway_messages import FromGateway, GatewayListenerKind, GatewaySettings
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.view.publisher import ViewPublisher
from ztunnel.l7.deployment.bootstrap import BootstrapSettings, bootstrap
from ztunnel.mesh.model import Workload

TIMEOUT_S = 40.0
GATEWAY = "shop/waypoint"
IN_NETNS = "--in-netns"
ENVOY = Path(sys.executable).parent / "envoy"


class OwnNamespace:
    """The data path of a pod that lives in this process's network namespace."""

    def gateway_listeners(
        self, netns_fd: int, *, ipv6: bool
    ) -> dict[GatewayListenerKind, socket.socket]:
        return netns.open_gateway_listeners(netns_fd, ipv6=False)


class ReportingProcess(GatewayProcess):
    """Reports each answer of Envoy after which it has the whole configuration."""

    def __init__(self, api: descriptors.EnvoyApi, path: Path, bench: Connection) -> None:
        super().__init__(api, path)
        self._bench = bench

    def _report(self, pod: GatewayPod) -> None:
        super()._report(pod)
        if pod.ads.is_synced:
            self._bench.send((time.monotonic(), [each.message for each in pod.rejected()]))


def gateway_process(path: Path, bench: Connection) -> None:
    """The child process."""

    async def run() -> None:
        await ReportingProcess(descriptors.load(), path, bench).run(asyncio.Event())

    asyncio.run(run())


class Bench:
    """The agent's side of the link, over a view with the services and routes."""

    def __init__(self, directory: Path, services: int, routes: int) -> None:
        self.services, self.routes = services, routes
        self.view = ClusterView("cluster.local", "Kubernetes", node="n")
        self.publisher = ViewPublisher(self.view)
        sessions, captured = SessionTable(), PodTable()
        pods = GatewayPods(OwnNamespace(), captured, sessions)  # type: ignore[arg-type]
        mesh = MeshBroadcast(self.view, sessions)
        settings = GatewaySettings(
            trust_domain="cluster.local",
            root_namespace="istio-system",
            cluster_domain="cluster.local",
        )
        l7, queries = L7Broadcast(self.view, sessions, settings), GatewayQueries(sessions)
        self.publisher.subscribe((mesh, l7, pods))
        handlers = MessageHandlers(FromGateway)
        for each in (pods, RejectedConfig(pods), queries):
            each.register(handlers)
        self.path = directory / "gateway.sock"
        self.server = AgentLinkServer(
            self.path, os.getuid(), sessions, handlers, (mesh, l7, pods, queries), process="gateway"
        )
        captured.put(_gateway_pod())

    def fill(self) -> None:
        """All objects."""
        self.view.upsert(_gateway())
        for number in range(self.services):
            for obj in _service(number):
                self.view.upsert(obj)
            for index in range(self.routes):
                self.view.upsert(route(number, index))
        self.publisher.publish()

    def put(self, *objects: Object) -> float:
        """Change objects; returns when (time.monotonic)."""
        began = time.monotonic()
        for obj in objects:
            self.view.upsert(obj)
        self.publisher.publish()
        return began


def _gateway_pod() -> Pod:
    workload = Workload(
        uid="Kubernetes//Pod/shop/waypoint-0",
        pod_uid="waypoint-0",
        name="waypoint-0",
        namespace="shop",
        service_account="waypoint",
        node="n",
        addresses=("10.244.0.2",),
        gateway=GATEWAY,
    )
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    return Pod(workload, netns=NetnsHandle(fd, os.getpid()), cookie=netns.cookie(fd))


def _gateway() -> Object:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "waypoint", "namespace": "shop"},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }


def _service(number: int) -> tuple[Object, Object]:
    metadata = {"name": f"s{number}", "namespace": "shop"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**metadata, "labels": {"istio.io/use-waypoint": "waypoint"}},
        "spec": {
            "clusterIPs": [f"10.96.{number // 250}.{number % 250 + 1}"],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    }
    return service, endpoints(number, 2)


def endpoints(number: int, count: int) -> Object:
    """The EndpointSlice of a service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"s{number}-a",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": f"s{number}"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {
                "addresses": [f"10.{245 + index}.{number // 250}.{number % 250 + 1}"],
                "conditions": {"ready": True},
            }
            for index in range(count)
        ],
    }


def route(number: int, index: int, header: str = "1") -> Object:
    """An HTTPRoute of a service."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": f"s{number}-{index}", "namespace": "shop"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": f"s{number}", "port": 80}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": f"/part-{index}"}}],
                    "filters": [
                        {
                            "type": "RequestHeaderModifier",
                            "requestHeaderModifier": {"set": [{"name": "x-part", "value": header}]},
                        }
                    ],
                    "backendRefs": [{"name": f"s{number}", "port": 80}],
                }
            ],
        },
    }


async def _answer(reports: Connection, began: float) -> float:
    """Milliseconds until Envoy had everything. Raises AssertionError."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if await asyncio.to_thread(reports.poll, 0.05):
            at, rejected = reports.recv()
            assert not rejected, rejected
            if at >= began:
                return float(at - began) * 1000
    raise AssertionError("Envoy has not acknowledged the configuration")


def _change(bench: Bench, what: str, number: int) -> tuple[Object, ...]:
    if what == "route changed":
        return (route(number, 1, f"v{number}"),)
    if what == "endpoint added":
        return (endpoints(number, 3),)
    added = bench.services + number
    return (*_service(added), *(route(added, index) for index in range(bench.routes)))


class Row(NamedTuple):
    """A kind of change: milliseconds until ACK, and CPU milliseconds of each change."""

    name: str
    times: list[float]
    gateway_cpu: float
    envoy_cpu: float


async def _measure(
    bench: Bench, reports: Connection, rounds: int, pids: tuple[int, int]
) -> list[Row]:
    found: list[Row] = []
    for name in ("route changed", "endpoint added", "service with its routes added"):
        times: list[float] = []
        before = [_cpu_ms(pid) for pid in pids]
        for number in range(rounds):
            began = bench.put(*_change(bench, name, number))
            times.append(await _answer(reports, began))
            await asyncio.sleep(0.05)
            while reports.poll():
                reports.recv()
        used = [(_cpu_ms(pid) - was) / rounds for pid, was in zip(pids, before, strict=True)]
        found.append(Row(name, times, *used))
    return found


def _cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _start_envoy(directory: Path) -> subprocess.Popen[bytes]:
    path = directory / "bootstrap.json"
    path.write_text(json.dumps(bootstrap(BootstrapSettings(GATEWAY, "bench", "127.0.0.1"))))
    command = [str(ENVOY), "-c", str(path), "--disable-hot-restart", "--concurrency", "1"]
    with (directory / "envoy.log").open("wb") as log:
        return subprocess.Popen([*command, "--log-level", "error"], stdout=log, stderr=log)


async def _run(options: argparse.Namespace) -> None:
    reports, child_end = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="ztunnel-bench-") as name:
        directory = Path(name)
        bench = Bench(directory, options.services, options.routes)
        bench.fill()
        bench.server.start()
        child = multiprocessing.get_context("spawn").Process(
            target=gateway_process, args=(bench.path, child_end)
        )
        child.start()
        envoy = _start_envoy(directory)
        began = time.monotonic()
        try:
            first = await _answer(reports, began)
            await asyncio.sleep(1)
            while reports.poll():
                reports.recv()
            assert child.pid is not None
            idle = _rss_mb(child.pid), _rss_mb(envoy.pid)
            rows = await _measure(bench, reports, options.rounds, (child.pid, envoy.pid))
            _print(options, first, idle, rows)
        finally:
            child.kill()
            envoy.kill()
            child.join()
            envoy.wait()
            bench.server.close()


def _print(
    options: argparse.Namespace,
    first: float,
    idle: tuple[float, float],
    rows: list[Row],
) -> None:
    total = options.services * options.routes
    print(f"{options.services} services, {total} HTTPRoutes behind one waypoint")
    print(f"processes started, until Envoy has everything: {first:.0f} ms")
    print(f"resident memory: gateway process {idle[0]:.0f} MB, Envoy {idle[1]:.0f} MB")
    for row in rows:
        ordered = sorted(row.times)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        print(
            f"{row.name}, until ACK: p50 {statistics.median(ordered):.1f} ms, p99 {p99:.1f} ms; "
            f"CPU of the gateway process {row.gateway_cpu:.0f} ms, of Envoy {row.envoy_cpu:.0f} ms"
        )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--routes", type=int, default=4, help="HTTPRoutes of each service")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(IN_NETNS, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.in_netns:
        script = 'ip link set lo up; exec "$@"'
        argv = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.argv, IN_NETNS]
        os.execvp(argv[0], argv)
    asyncio.run(_run(options))


if __name__ == "__main__":
    main()
