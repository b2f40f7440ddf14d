# SPDX-License-Identifier: Apache-2.0
"""`ztctl waypoint status`."""

from __future__ import annotations

import click

from ztctl.commands.l7.waypoint.gateway import is_programmed, status_rows
from ztctl.commands.l7.waypoint.options import all_namespaces_option, namespace_option
from ztctl.commands.l7.waypoint.stores import waypoint_store
from ztctl.context import Context, output_option
from ztctl.errors import CommandError
from ztctl.output import Column

_COLUMNS = (
    Column("NAMESPACE", "namespace"),
    Column("NAME", "name"),
    Column("TYPE", "type"),
    Column("STATUS", "status"),
    Column("REASON", "reason"),
    Column("MESSAGE", "message"),
)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@namespace_option
@all_namespaces_option
@output_option
@click.pass_obj
def status(
    context: Context, *, names: tuple[str, ...], namespace: str, all_namespaces: bool
) -> None:
    """Show the conditions of waypoints. Fails if one is not programmed.

    \b
    Examples:
      ztctl waypoint status -n shop
      ztctl waypoint status waypoint -n shop -o json
    """
    with waypoint_store(context) as store:
        found = store.gateways(None if all_namespaces else namespace)
        classes = {each["spec"]["gatewayClassName"] for each in found}
        foreign = {name: store.foreign_controller(name) for name in classes}
    known = {each["metadata"]["name"] for each in found}
    missing = [name for name in names if name not in known]
    if names:
        found = [each for each in found if each["metadata"]["name"] in names]
    context.print_rows(list(status_rows(found, foreign.__getitem__)), _COLUMNS)
    if missing:
        raise CommandError(f"no waypoint {', '.join(missing)} in namespace {namespace}")
    unready = [each["metadata"]["name"] for each in found if not is_programmed(each)]
    if unready:
        raise CommandError(f"not programmed: {', '.join(unready)}")
