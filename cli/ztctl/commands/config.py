# SPDX-License-Identifier: Apache-2.0
"""`ztctl config dump`: the agent's whole view in one document. Never a key."""

from __future__ import annotations

from typing import Any

import click

from ztctl import admin_client, output
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError, NotReachableError
from ztctl.output import Format


@click.group()
def config() -> None:
    """All that the agent knows, for a bug report."""


@config.command()
@target_options
@output_option
@click.pass_obj
def dump(context: Context) -> None:
    """Print status, log settings, pods, certificates, workloads and services by node.

    JSON unless `-o yaml` is given. It has names and addresses of the mesh, and no private key.

    \b
    Examples:
      ztctl config dump > node.json
      ztctl --lab lab --node node1 config dump -o yaml
    """
    found: dict[str, Any] = {}
    problems = []
    for each in context.installations():
        try:
            found[each.node] = admin_client.get(each.run_dir, "/config_dump")
        except CommandError as error:
            problems.append(f"{each.node}: {error.message}")
    if found:
        form = Format.JSON if context.form is Format.TABLE else context.form
        click.echo(output.data(found, form))
    if problems:
        raise NotReachableError("; ".join(problems))
