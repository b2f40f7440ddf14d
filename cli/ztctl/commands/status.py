# SPDX-License-Identifier: Apache-2.0
"""`ztctl status`: the state of the agent and its proxy."""

from __future__ import annotations

import click

from ztctl import admin_client, output
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError
from ztctl.output import Format
from ztctl.resources import raise_if_any


@click.command()
@target_options
@output_option
@click.pass_obj
def status(context: Context) -> None:
    """Show the state of the agent and its proxy, for each node.

    \b
    Examples:
      ztctl status
      ztctl --lab lab --node node1 status -o yaml
    """
    rows, errors = [], []
    for target in context.targets():
        try:
            row = admin_client.get(target.run_dir, "/v1/status")
        except CommandError as error:
            errors.append(f"{target.node}: {error.message}")
            continue
        rows.append({"node": target.node, **row})
    if context.output_format is Format.TABLE:
        click.echo("\n\n".join(map(output.render_fields, rows)), nl=bool(rows))
    else:
        click.echo(output.render_data(rows, context.output_format))
    raise_if_any(errors)
