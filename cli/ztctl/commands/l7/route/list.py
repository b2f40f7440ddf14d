# SPDX-License-Identifier: Apache-2.0
"""`ztctl route list`: all routes, with parents and status."""

from __future__ import annotations

import click

from ztctl.commands.l7.route.rows import route_rows
from ztctl.context import Context, output_option, target_options
from ztctl.l7_inputs import load_inputs
from ztctl.output import Column

COLUMNS = (
    Column("NAMESPACE", "namespace"),
    Column("KIND", "kind"),
    Column("NAME", "name"),
    Column("PARENT", "parent"),
    Column("PORTS", "ports"),
    Column("GATEWAY", "gateway"),
    Column("STATE", "state"),
    Column("MESSAGE", "message"),
)


@click.command(name="list")
@target_options
@output_option
@click.pass_obj
def list_(context: Context) -> None:
    """Routes of services and ingress gateways, and what becomes of them.

    A route is in effect if its state is Accepted. The other states are the reasons of the
    conditions in its status. BackendNotFound and RefNotPermitted affect only the requests for that
    backend.

    \b
    Examples:
      ztctl route list
      ztctl route list -o json
    """
    context.print_rows(route_rows(load_inputs(context)), COLUMNS)
