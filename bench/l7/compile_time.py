# SPDX-License-Identifier: Apache-2.0
"""The time in which the configuration of a waypoint is compiled, by kind of change.

    python -m bench.l7.compile_time [--services 500] [--routes 2000]

No root and no Envoy. Each change is applied ten times; the table has the median and the maximum in
milliseconds, and how many destinations and clusters were compiled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ztunnel.ipc.messages import MeshDelta
from ztunnel.l7.compile import GatewayCompiler
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import l7_object
from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import Endpoint, Service, ServicePort
from ztunnel.mesh.state import MeshState

GATEWAY = "default/waypoint"
REPEATS = 10


class Cluster:
    """Services behind one waypoint, with two endpoints and the same number of routes each."""

    def __init__(self, services: int, routes: int) -> None:
        self.mesh, self.store, self.services = MeshState(), L7Store(), services
        self.apply(*(self.service(n) for n in range(services)))
        for number in range(routes):
            self.store.put(l7_object(self.route(number)))

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.store, self.mesh)

    def apply(self, *services: Service) -> None:
        self.mesh.apply(MeshDelta(revision=0, services=services))

    def service(self, number: int) -> Service:
        name = f"s{number}"
        pods = [f"10.{128 + each}.{number // 250}.{number % 250}" for each in range(2)]
        return Service(
            namespace="default",
            name=name,
            vips=(f"10.96.{number // 250}.{number % 250}",),
            hostname=f"{name}.default.svc.cluster.local",
            ports=(ServicePort(80, "http", "TCP", "http"),),
            endpoints=tuple(Endpoint(address=ip, ports={"http": 8080}) for ip in pods),
            waypoint=GATEWAY,
        )

    def route(self, number: int, value: str = "") -> dict[str, Any]:
        own, other = f"s{number % self.services}", f"s{(number + 1) % self.services}"
        backends = [
            {"name": own, "port": 80, "weight": 90},
            {"name": other, "port": 80, "weight": 10},
        ]
        matches = [{"path": {"value": f"/{number}"}, "headers": [{"name": "x", "value": value}]}]
        return {
            "kind": "HTTPRoute",
            "metadata": {"name": f"r{number}", "namespace": "default"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": own}],
                "rules": [{"matches": matches, "backendRefs": backends}],
            },
        }


def measure(
    name: str, compiler: GatewayCompiler, cluster: Cluster, change: Callable[[int], None]
) -> None:
    """Print the time of compilations after a change."""
    times = []
    for repeat in range(REPEATS):
        change(repeat)
        started = time.perf_counter()
        compiler.compile(cluster.inputs)
        times.append(1000 * (time.perf_counter() - started))
    destinations, clusters = compiler.recompiled
    print(
        f"{name:20} {statistics.median(times):7.1f} {max(times):7.1f} {destinations:5} {clusters:5}"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--routes", type=int, default=2000)
    options = parser.parse_args()
    cluster = Cluster(options.services, options.routes)
    compiler = GatewayCompiler(GATEWAY)
    started = time.perf_counter()
    compiler.compile(cluster.inputs)
    first = 1000 * (time.perf_counter() - started)
    print(f"{options.services} services, {options.routes} routes; first compilation {first:.0f} ms")
    print(f"{'change':20} {'median':>7} {'max':>7} {'dest.':>5} {'clus.':>5}")

    def route(repeat: int) -> None:
        cluster.store.put(l7_object(cluster.route(7, f"v{repeat}")))

    def endpoints(repeat: int) -> None:
        service = cluster.service(9)
        cluster.apply(msgspec.structs.replace(service, endpoints=service.endpoints[: repeat % 2]))

    def service(repeat: int) -> None:
        cluster.apply(cluster.service(options.services + repeat))

    measure("nothing", compiler, cluster, lambda _: None)
    measure("one route", compiler, cluster, route)
    measure("endpoints", compiler, cluster, endpoints)
    measure("new service", compiler, cluster, service)


if __name__ == "__main__":
    main()
