# SPDX-License-Identifier: Apache-2.0
"""`ztctl pod`: the node's pods and their enrollment."""

from __future__ import annotations

from ztctl.output import Column
from ztctl.resources import Resource, list_group

PODS = Resource(
    "pod",
    "/v1/pods",
    "Pods of the node and their enrollment state.",
    (
        Column("NODE", "node"),
        Column("POD", "workload"),
        Column("STATE", "state"),
        Column("ADDRESSES", "addresses"),
        Column("NETNS", "netns_cookie"),
        Column("PROBLEM", "problem"),
    ),
    per_node=True,
)

pod = list_group(PODS)
