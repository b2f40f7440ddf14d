# SPDX-License-Identifier: Apache-2.0
"""`ztctl waypoint list`."""

from __future__ import annotations

import click

from ztctl.commands.l7.waypoint.gateway import list_rows
from ztctl.commands.l7.waypoint.options import all_namespaces_option, namespace_option
from ztctl.commands.l7.waypoint.stores import waypoint_store
from ztctl.context import Context, output_option
from ztctl.output import Column

_COLUMNS = (
    Column("NAMESPACE", "namespace"),
    Column("NAME", "name"),
    Column("CLASS", "class"),
    Column("FOR", "for"),
    Column("ADDRESSES", "addresses"),
    Column("PROGRAMMED", "programmed"),
)


@click.command(name="list")
@namespace_option
@all_namespaces_option
@output_option
@click.pass_obj
def list_(context: Context, *, namespace: str, all_namespaces: bool) -> None:
    """List waypoints.

    \b
    Examples:
      ztctl waypoint list -A
    """
    with waypoint_store(context) as store:
        found = store.gateways(None if all_namespaces else namespace)
    context.print_rows(list(list_rows(found)), _COLUMNS)
