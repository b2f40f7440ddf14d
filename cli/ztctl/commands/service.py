# SPDX-License-Identifier: Apache-2.0
"""`ztctl service`: the services of the mesh."""

from __future__ import annotations

from ztctl.output import Column, Row
from ztctl.resources import Resource, list_group


def _ready_endpoints(service: Row) -> str:
    endpoints = service.get("endpoints") or []
    return f"{sum(bool(each.get('ready')) for each in endpoints)}/{len(endpoints)}"


def _ports(service: Row) -> list[str]:
    return [f"{each['port']}/{each.get('protocol', 'TCP')}" for each in service.get("ports") or []]


SERVICES = Resource(
    "service",
    "/v1/services",
    "Services of the mesh, as the agent sees them.",
    (
        Column("NAMESPACE", "namespace"),
        Column("SERVICE", "name"),
        Column("ADDRESSES", "vips"),
        Column("PORTS", "ports"),
        Column("READY", "endpoints"),
        Column("WAYPOINT", "waypoint"),
        Column("PROBLEM", "waypoint_error"),
    ),
    per_node=False,
    computed={"ports": _ports, "endpoints": _ready_endpoints},
)

service = list_group(SERVICES)
