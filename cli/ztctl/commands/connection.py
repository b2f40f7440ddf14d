# SPDX-License-Identifier: Apache-2.0
"""`ztctl connection`: open connections of captured pods."""

from __future__ import annotations

import time
from typing import Any

from ztctl import output
from ztctl.output import Column, Row
from ztctl.resources import Resource, list_group
from ztunnel.mesh.ports import HBONE


def _age(connection: Row) -> str:
    return output.format_duration(time.time() - float(connection.get("started") or time.time()))


def _app_destination(connection: Row) -> Any:
    """The app's address. A tunneled connection has two addresses; the other is the tunnel's."""
    destination = output.lookup(connection, "destination.address")
    authority = connection.get("hbone_addr")
    return authority if authority and str(destination).endswith(f":{HBONE}") else destination


def _protocol(connection: Row) -> str:
    if connection.get("same_node"):
        return "DIRECT"
    return "HBONE" if connection.get("hbone_addr") else "TCP"


def _peer_identity(connection: Row) -> Any:
    side = "source" if connection.get("direction") == "inbound" else "destination"
    return output.lookup(connection, f"{side}.identity")


CONNECTIONS = Resource(
    "connection",
    "/v1/connections",
    "Open connections of captured pods, through the proxy or by the same-node bypass.",
    (
        Column("NODE", "node"),
        Column("DIRECTION", "direction"),
        Column("SOURCE", "source.address"),
        Column("DESTINATION", "target"),
        Column("SERVICE", "service"),
        Column("PROTOCOL", "protocol"),
        Column("PEER", "peer"),
        Column("SENT", "sent"),
        Column("RECEIVED", "received"),
        Column("AGE", "age"),
    ),
    per_node=True,
    computed={
        "age": _age,
        "target": _app_destination,
        "protocol": _protocol,
        "peer": _peer_identity,
    },
)

connection = list_group(CONNECTIONS)
