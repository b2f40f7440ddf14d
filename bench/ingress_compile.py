# SPDX-License-Identifier: Apache-2.0
"""The time to compile and encode the configuration of an ingress gateway.

    .venv/bin/python bench/ingress_compile.py [--hosts 500] [--routes 2000] [--rounds 20]

One Gateway has 500 hostnames with 4 HTTPRoutes and one Service of two pods each. Prints
milliseconds: of the first compilation, and of changes of one route and of one Service (median and
maximum of the rounds). Needs no privileges.
"""

from __future__ import annotations

import argparse
import statistics
import time

from ztunnel.gateway.xds import descriptors
from ztunnel.gateway.xds.resources import ResourceEncoder
from ztunnel.ipc.messages import MeshDelta
from ztunnel.l7.compile import GatewayCompiler
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.objects import l7_object
from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import Endpoint, Service, ServicePort
from ztunnel.mesh.state import MeshState

GATEWAY = "shop/edge"


class Bench:
    """A store and a mesh, compiled again after each change."""

    def __init__(self, hosts: int, routes: int) -> None:
        self.hosts = hosts
        self.store, self.mesh = L7Store(), MeshState()
        self.inputs = Inputs(self.store, self.mesh, Settings())
        self.compiler = GatewayCompiler(GATEWAY)
        self.encoder = ResourceEncoder(descriptors.load())
        listener = {"name": "http", "port": 80, "protocol": "HTTP"}
        self._put("Gateway", "edge", {"gatewayClassName": "ztunnel", "listeners": [listener]})
        for number in range(hosts):
            self.put_service(number, 0)
        for number in range(routes):
            self.put_route(number, "a")

    def put_service(self, number: int, version: int) -> None:
        """Add or change a Service."""
        endpoints = tuple(
            Endpoint(address=f"10.{each}.{number // 250}.{number % 250 + 1}", ports={"http": 8080})
            for each in (1, 2 + version)
        )
        service = Service(
            namespace="shop",
            name=f"s{number}",
            vips=(f"10.96.{number // 250}.{number % 250 + 1}",),
            hostname=f"s{number}.shop.svc.cluster.local",
            ports=(ServicePort(80, "http", "TCP", "http"),),
            endpoints=endpoints,
        )
        self.mesh.apply(MeshDelta(revision=0, services=(service,)))

    def put_route(self, number: int, value: str) -> None:
        """Add or change an HTTPRoute."""
        rule = {
            "matches": [{"path": {"value": f"/{value}/{number}"}}],
            "backendRefs": [{"name": f"s{number % self.hosts}", "port": 80}],
        }
        spec = {
            "parentRefs": [{"name": "edge"}],
            "hostnames": [f"h{number % self.hosts}.example.com"],
            "rules": [rule],
        }
        self._put("HTTPRoute", f"r{number}", spec)

    def compile_ms(self) -> float:
        """Compile and encode what has changed."""
        began = time.perf_counter()
        self.encoder.encode(self.compiler.compile(self.inputs).resources)
        return 1000 * (time.perf_counter() - began)

    def _put(self, kind: str, name: str, spec: dict[str, object]) -> None:
        metadata = {"name": name, "namespace": "shop"}
        self.store.put(l7_object({"kind": kind, "metadata": metadata, "spec": spec}))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hosts", type=int, default=500)
    parser.add_argument("--routes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    bench = Bench(options.hosts, options.routes)
    print(f"{options.hosts} hosts, {options.routes} HTTPRoutes; milliseconds")
    print(f"first        {bench.compile_ms():8.0f}")
    routes, services = [], []
    for number in range(options.rounds):
        bench.put_route(number, "changed")
        routes.append(bench.compile_ms())
        bench.put_service(number, 1)
        services.append(bench.compile_ms())
    for name, found in (("one route", routes), ("one Service", services)):
        print(f"{name:12} {statistics.median(found):8.0f}, at most {max(found):.0f}")


if __name__ == "__main__":
    main()
