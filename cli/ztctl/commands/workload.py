# SPDX-License-Identifier: Apache-2.0
"""`ztctl workload`: the workloads of the mesh."""

from __future__ import annotations

from ztctl.output import Column
from ztctl.resources import Resource, list_group

WORKLOADS = Resource(
    "workload",
    "/v1/workloads",
    "Workloads of the mesh, as the agent sees them.",
    (
        Column("NAMESPACE", "namespace"),
        Column("WORKLOAD", "name"),
        Column("NODE", "node"),
        Column("PROTOCOL", "protocol"),
        Column("ADDRESSES", "addresses"),
        Column("READY", "ready"),
        Column("IDENTITY", "identity"),
        Column("WAYPOINT", "waypoint"),
        Column("EXCLUDED-REASON", "capture_refused"),
    ),
    per_node=False,
)

workload = list_group(WORKLOADS)
