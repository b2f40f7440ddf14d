# SPDX-License-Identifier: Apache-2.0
"""`ztctl route show`: the rules of the routes of a service, in the order in which they apply."""

from __future__ import annotations

import click

from ztctl.commands.l7.route.services import find_service, rule_rows
from ztctl.context import Context, output_option, target_options
from ztctl.l7_inputs import load_inputs
from ztctl.output import Column

COLUMNS = (
    Column("PORT", "port"),
    Column("CLIENTS", "clients"),
    Column("ROUTE", "route"),
    Column("RULE", "rule"),
    Column("MATCH", "match"),
    Column("ACTION", "action"),
)


@click.command()
@click.argument("service")
@target_options
@output_option
@click.pass_obj
def show(context: Context, service: str) -> None:
    """Rules that apply to requests to SERVICE, in the order in which they are tried.

    SERVICE is NAME, NAMESPACE/NAME or a DNS name. The first rule that matches decides. Rules for
    the clients of one namespace are consumer routes, which replace the others for these clients.

    \b
    Examples:
      ztctl route show my-app
      ztctl route show shop/cart -o yaml
    """
    inputs = load_inputs(context)
    context.print_rows(rule_rows(inputs, find_service(inputs, service)), COLUMNS)
