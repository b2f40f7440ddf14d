# SPDX-License-Identifier: Apache-2.0
"""`ztctl config dump`: the agent's state in one document, without private keys."""

from __future__ import annotations

from typing import Any

import click

from ztctl import admin_client, output
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError
from ztctl.output import Format
from ztctl.resources import raise_if_any


@click.group()
def config() -> None:
    """The agent's state in one document, for bug reports."""


@config.command()
@target_options
@output_option
@click.pass_obj
def dump(context: Context) -> None:
    """Print status, log settings, pods, certificates, workloads and services of each node.

    The output is JSON unless -o yaml is set. It contains names and addresses of the mesh, but no
    private key.

    \b
    Examples:
      ztctl config dump > node.json
      ztctl --lab lab --node node1 config dump -o yaml
    """
    dumps: dict[str, Any] = {}
    errors = []
    for target in context.targets():
        try:
            dumps[target.node] = admin_client.get(target.run_dir, "/config_dump")
        except CommandError as error:
            errors.append(f"{target.node}: {error.message}")
    if dumps:
        is_table = context.output_format is Format.TABLE
        click.echo(output.render_data(dumps, Format.JSON if is_table else context.output_format))
    raise_if_any(errors)
