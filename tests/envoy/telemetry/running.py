# SPDX-License-Identifier: Apache-2.0
"""A waypoint in front of the service shop/web, for tests of telemetry with a real Envoy."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from tests.support.waypoint.backend import Backend, Respond
from tests.support.waypoint.client import TIMEOUT_S, Answer, dial, request
from tests.support.waypoint.envoy import RunningEnvoy, running_envoy
from tests.support.waypoint.world import World
from ztunnel.l7.inputs import Settings
from ztunnel.l7.names import PeerState
from ztunnel.l7.telemetry import bootstrap
from ztunnel.l7.telemetry.page import prometheus_page
from ztunnel.mesh.model import TunnelProtocol

Json = dict[str, Any]
Series = dict[str, str]
IDENTITY = "spiffe://cluster.local/ns/shop/sa/client"
PEER = {
    PeerState.IDENTITY: IDENTITY,
    PeerState.WORKLOAD: "client",
    PeerState.NAMESPACE: "shop",
    PeerState.APP: "client-app",
    PeerState.VERSION: "v7",
}


class Waypoint:
    """The running Envoy; `backend` answers for shop/web."""

    def __init__(self, envoy: RunningEnvoy, backend: Backend, vip: tuple[str, int]) -> None:
        self.envoy, self.backend, self.vip = envoy, backend, vip

    def get(self, path: str = "/", **options: Any) -> Answer:
        """Send a request as the pod of PEER."""
        return request(self.envoy.port, self.vip, path=path, **{"peer": PEER, **options})

    def session(self) -> http.client.HTTPConnection:
        """A connection for many requests."""
        connection = http.client.HTTPConnection("waypoint", timeout=TIMEOUT_S)
        connection.sock = dial(self.envoy.port, self.vip, PEER)
        return connection

    def series(self, metric: str) -> list[tuple[Series, float]]:
        """The series of a metric on the page that Prometheus scrapes."""
        time.sleep(0.6)  # histograms are current after the next flush
        page = prometheus_page(self.envoy.admin_get("/stats/prometheus").encode()).decode()
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == metric
        ]


@contextmanager
def running(
    directory: Path,
    *objects: Json,
    respond: Respond | None = None,
    protocol: str = "http",
    settings: Settings | None = None,
    eviction_s: int = 1800,
    ready: bool = True,
) -> Iterator[Waypoint]:
    """Run Envoy with the objects. Without `ready`, the service has no endpoint."""
    world = World()
    world.settings = settings or world.settings
    for obj in objects:
        world.add(obj)
    extra = {**bootstrap.fields(eviction_s), "stats_flush_interval": "0.2s"}
    with Backend("v2", respond) as backend:
        labels = {"app": "web", "version": "v2"}
        ports = {80: protocol}
        backends = [backend.port] if ready else []
        vip = world.service("web", ports, backends, namespace="shop", labels=labels)
        for pod in list(world.mesh.state.workloads()):
            world.mesh.put(
                msgspec.structs.replace(
                    pod,
                    protocol=TunnelProtocol.HBONE,
                    owner_kind="deployment",
                    owner_name="web-v2",
                )
            )
        with running_envoy(world.compile(), directory, extra) as envoy:
            yield Waypoint(envoy, backend, vip)


def telemetry(spec: Json, name: str = "t", namespace: str = "default", created: str = "") -> Json:
    """A Telemetry object, by default in the waypoint's namespace."""
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
    return {"kind": "Telemetry", "metadata": metadata, "spec": spec}
