# SPDX-License-Identifier: Apache-2.0
"""Worlds with DestinationRules."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.support.waypoint.backend import Backend
from tests.support.waypoint.world import GATEWAY, LOOPBACK, World
from ztunnel.l7.config import ClusterFields
from ztunnel.l7.traffic.cluster import cluster_fields
from ztunnel.mesh.model import Endpoint


def destination_rule(
    policy: dict[str, Any],
    *,
    host: str = "web",
    namespace: str = "default",
    name: str = "rule",
    created: str = "",
    **spec: Any,
) -> dict[str, Any]:
    """A DestinationRule."""
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
    return {
        "kind": "DestinationRule",
        "metadata": metadata,
        "spec": {"host": host, "trafficPolicy": policy, **spec},
    }


def fields_of(world: World, *, port: int = 80, subset: str = "") -> ClusterFields:
    """What the policies add to the cluster of a port of the service `web`."""
    service = world.mesh.state.service("default/web")
    assert service is not None
    found = next(one for one in service.ports if one.port == port)
    return cluster_fields(world.inputs, GATEWAY, service, found, subset)


def world_with_versions(
    backends: dict[str, Backend],
    labels: dict[str, dict[str, str]] | None = None,
    protocol: str = "http",
) -> tuple[World, tuple[str, int]]:
    """The service `web` with a pod of each version, whose label `version` is the key."""
    world = World()
    vip = world.service("web", {80: protocol})
    service = world.mesh.state.service("default/web")
    assert service is not None
    endpoints = []
    for version, backend in backends.items():
        more = (labels or {}).get(version, {})
        pod = world.pod(f"web-{version}", labels={"app": "web", "version": version, **more})
        endpoints.append(Endpoint(address=LOOPBACK, ports={"p80": backend.port}, workload=pod.uid))
    world.mesh.put(msgspec.structs.replace(service, endpoints=tuple(endpoints)))
    return world, vip
