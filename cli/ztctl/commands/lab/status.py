# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab status`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ztctl import output
from ztctl.commands.lab.options import lab_errors, name_option
from ztctl.context import Context, output_option
from ztctl.output import Column, Format
from ztunnel.lab import Lab

_NODES = (Column("NODE", "name"), Column("ADDRESSES", "addresses"), Column("NETNS", "netns"))
_PODS = (
    Column("NAMESPACE", "namespace"),
    Column("POD", "name"),
    Column("NODE", "node"),
    Column("READY", "ready"),
    Column("STATUS", "status"),
    Column("MODE", "dataplaneMode"),
    Column("ADDRESSES", "addresses"),
)
_SERVICES = (
    Column("NAMESPACE", "namespace"),
    Column("SERVICE", "name"),
    Column("CLUSTER-IPS", "clusterIPs"),
    Column("EXTERNAL-IPS", "externalIPs"),
    Column("PORTS", "ports"),
    Column("ENDPOINTS", "endpoints"),
)


@click.command()
@name_option
@output_option
@click.pass_context
def status(ctx: click.Context, name: str) -> None:
    """Show nodes, pods and services."""
    with lab_errors():
        lab_status = Lab(name).status()
    output_format = ctx.ensure_object(Context).output_format
    if output_format is Format.TABLE:
        click.echo("\n\n".join(_tables(lab_status)))
    else:
        click.echo(output.render_data(lab_status, output_format))


def _tables(lab_status: dict[str, Any]) -> Iterator[str]:
    kinds = list(lab_status["nodes"][0]["components"])
    columns = (*_NODES, *(Column(kind.upper(), f"health.{kind}") for kind in kinds))
    nodes = [{**node, "health": _health(node["components"])} for node in lab_status["nodes"]]
    yield output.render_table(columns, nodes)
    yield output.render_table(_PODS, lab_status["pods"])
    yield output.render_table(_SERVICES, lab_status["services"])


def _health(components: dict[str, Any]) -> dict[str, str]:
    """For each component `ready(PID)`, `unready(PID)` or `dead`."""
    health = {}
    for kind, component in components.items():
        state = "ready" if component["ready"] else "unready"
        health[kind] = f"{state}({component['pid']})" if component["pid"] else "dead"
    return health
