# SPDX-License-Identifier: Apache-2.0
"""`ztctl proxy-config status POD`: which resources Envoy has accepted."""

from __future__ import annotations

from typing import Any

import click

from ztctl.commands.l7.proxy_config.pods import find_pod, pod_argument
from ztctl.context import Context
from ztctl.output import Column, Format

_COLUMNS = (
    Column("TYPE", "type"),
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("VERSION", "version"),
    Column("ACCEPTED", "accepted"),
    Column("MESSAGE", "message"),
)


@click.command()
@pod_argument
@click.pass_obj
def status(context: Context, pod: str, namespace: str) -> None:
    """Whether Envoy has the current version of each resource, and why it rejects one.

    After a rejection, Envoy uses the version that it accepted last.

    \b
    Examples:
      ztctl proxy-config status waypoint
      ztctl proxy-config status waypoint -o json
    """
    found: dict[str, Any] = find_pod(context, pod, namespace).view("xds")
    if context.output_format is not Format.TABLE:
        context.print_rows([found], _COLUMNS)
        return
    context.print_rows(found["resources"], _COLUMNS)
    if not found["connected"]:
        click.echo("Envoy is not connected to the gateway process", err=True)
    if found["error"]:
        click.echo(f"configuration not compiled: {found['error']}", err=True)
    for problem in found["problems"]:
        click.echo(problem, err=True)
