# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy test`: the decision on a connection, without opening it."""

from __future__ import annotations

import click

from ztctl import output
from ztctl.commands.policy.query import query_any_agent, render_decision
from ztctl.context import Context, output_option, target_options
from ztctl.errors import EXIT_FAILED
from ztctl.output import Format


@click.command()
@click.option("--from", "source", required=True, metavar="POD", help="Source of the connection.")
@click.option("--to", "destination", required=True, metavar="POD:PORT", help="Destination.")
@click.option("-6", "--ipv6", is_flag=True, help="Use the pods' IPv6 addresses.")
@target_options
@output_option
@click.pass_context
def test(ctx: click.Context, *, source: str, destination: str, ipv6: bool) -> None:
    """Show the decision on a connection, and the rule it follows from. No traffic is sent.

    POD is NAME, NAMESPACE/NAME, the name of the pod's owner, or an address. Exits with 1 if the
    connection would be denied.

    \b
    Examples:
      ztctl policy test --from client --to my-app:80
      ztctl policy test --from 203.0.113.7 --to shop/db:5432 -o json
    """
    context: Context = ctx.obj
    query = {"from": source, "to": destination, **({"family": "6"} if ipv6 else {})}
    decision = query_any_agent(context, "/v1/policy/test", **query)
    if context.output_format is Format.TABLE:
        click.echo(render_decision(decision))
    else:
        click.echo(output.render_data(decision, context.output_format))
    if not decision["allowed"]:
        ctx.exit(EXIT_FAILED)
