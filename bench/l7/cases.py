# SPDX-License-Identifier: Apache-2.0
"""The paths, contenders and quantities of the benchmark. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from bench.comparison.results import OURS, Measurement

NO_MESH = "no mesh"
L4 = "ours, no waypoint"
ENVOY = "Envoy, routing only"
ENVOY_FILTERS = "Envoy, same filters"
ENVOY_HBONE = "Envoy with HBONE of its own"
CONTENDERS = (OURS, NO_MESH, L4, ENVOY, ENVOY_FILTERS, ENVOY_HBONE)

MANY = 64  # connections, for throughput
ONE = 1  # connection, for latency
RATE = Measurement(f"requests/s, {MANY} connections", "1/s")
P50 = {
    ONE: Measurement("p50, 1 connection", "us"),
    MANY: Measurement(f"p50, {MANY} connections", "us"),
}
P99 = {
    ONE: Measurement("p99, 1 connection", "us"),
    MANY: Measurement(f"p99, {MANY} connections", "us"),
}
CPU = Measurement(f"CPU per request of proxies and Envoy, {MANY} connections", "us")


@dataclass(frozen=True)
class Path:
    """Where client, proxy (waypoint or Envoy) and server run."""

    name: str
    proxy: str  # node
    server: str  # node

    @property
    def service(self) -> str:
        """The name of the service of this path."""
        return f"{self.server}-by-{self.proxy}"


CLIENT_NODE = "node1"
SAME = Path("same node", "node1", "node1")
AT_CLIENT = Path("waypoint on the client's node", "node1", "node2")
AT_SERVER = Path("waypoint on the server's node", "node2", "node2")
PATHS = (SAME, AT_CLIENT, AT_SERVER)
