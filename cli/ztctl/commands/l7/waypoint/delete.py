# SPDX-License-Identifier: Apache-2.0
"""`ztctl waypoint delete`."""

from __future__ import annotations

import click

from ztctl.commands.l7.waypoint.options import namespace_option
from ztctl.commands.l7.waypoint.stores import waypoint_store
from ztctl.context import Context
from ztctl.errors import CommandError


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="Delete all waypoints of the namespace.")
@namespace_option
@click.pass_obj
def delete(context: Context, *, names: tuple[str, ...], every: bool, namespace: str) -> None:
    """Delete waypoints. Connections to objects that still use them are refused.

    \b
    Examples:
      ztctl waypoint delete waypoint -n shop
      ztctl waypoint delete --all -n shop
    """
    if bool(names) is every:
        raise click.UsageError("expected names of waypoints, or --all")
    with waypoint_store(context) as store:
        if every:
            names = tuple(each["metadata"]["name"] for each in store.gateways(namespace))
        missing = []
        for name in names:
            if store.delete(namespace, name):
                click.echo(f"waypoint {namespace}/{name} deleted")
            else:
                missing.append(name)
    if missing:
        raise CommandError(f"no waypoint {', '.join(missing)} in namespace {namespace}")
