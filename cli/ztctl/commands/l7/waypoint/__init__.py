# SPDX-License-Identifier: Apache-2.0
"""`ztctl waypoint`: run waypoints, as `istioctl waypoint`."""

from __future__ import annotations

import click

from ztctl.commands.l7.waypoint.apply import apply
from ztctl.commands.l7.waypoint.delete import delete
from ztctl.commands.l7.waypoint.generate import generate
from ztctl.commands.l7.waypoint.list import list_
from ztctl.commands.l7.waypoint.status import status

waypoint = click.Group(
    "waypoint",
    commands=[apply, delete, generate, list_, status],
    help="Waypoints: Envoys that handle HTTP for services. In a cluster, or with --lab in a lab.",
)
