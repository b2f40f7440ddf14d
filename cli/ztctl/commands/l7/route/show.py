# SPDX-License-Identifier: Apache-2.0
"""`ztctl route show`: the rules of a service or gateway, in the order in which they apply."""

from __future__ import annotations

import click

from ztctl.commands.l7.route.gateways import PREFIX, find_gateway, gateway_rows
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


GATEWAY_COLUMNS = (
    Column("PORT", "port"),
    Column("LISTENER", "listener"),
    Column("HOST", "host"),
    *COLUMNS[2:],
)


@click.command()
@click.argument("service")
@target_options
@output_option
@click.pass_obj
def show(context: Context, service: str) -> None:
    """Rules that apply to requests to SERVICE, in the order in which they are tried.

    SERVICE is NAME, NAMESPACE/NAME or a DNS name; of an ingress gateway, gateway/NAME or
    gateway/NAMESPACE/NAME. The first rule that matches decides. Rules for the clients of one
    namespace are consumer routes, which replace the others for these clients.

    \b
    Examples:
      ztctl route show my-app
      ztctl route show shop/cart -o yaml
      ztctl route show gateway/edge
    """
    inputs = load_inputs(context)
    if service.startswith(PREFIX):
        gateway = find_gateway(inputs, service.removeprefix(PREFIX))
        context.print_rows(gateway_rows(inputs, gateway), GATEWAY_COLUMNS)
        return
    context.print_rows(rule_rows(inputs, find_service(inputs, service)), COLUMNS)
