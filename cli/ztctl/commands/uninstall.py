# SPDX-License-Identifier: Apache-2.0
"""`ztctl uninstall`: removes ztunnel from this machine or from a cluster."""

from __future__ import annotations

from contextlib import closing

import click

from ztctl.cluster.manifests import Object, title
from ztctl.context import Context, output_option, target_options
from ztctl.node import removal
from ztctl.output import Column, Format, Row

TIMEOUT_S = 300.0
COLUMNS = (Column("NODE", "node"), Column("REMOVED", "removed"), Column("PATH", "path"))


@click.command()
@click.option(
    "--keep-nodes",
    is_flag=True,
    help="Cluster only: do not clean the nodes; captured pods cannot connect until that is done.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=TIMEOUT_S,
    show_default=True,
    help="Cluster only: seconds for each step on the nodes.",
)
@target_options
@output_option
@click.pass_obj
def uninstall(context: Context, *, keep_nodes: bool, timeout_s: float) -> None:
    """Remove ztunnel from this machine, or from a cluster with --kubeconfig or --context.

    Machine: removes BPF links, programs and maps, and the run directory. The agent must be
    stopped. Use `ztctl lab down` to remove a lab.

    Cluster: removes the objects that `ztctl install` created. The kernel of each node is cleaned
    while its proxy still runs, so captured pods stay connected. New connections are plaintext from
    then on. Policies and their CustomResourceDefinitions are not removed.

    The command is safe to repeat.

    \b
    Examples:
      ztctl uninstall
      ztctl uninstall --context my-cluster
      ztctl uninstall --pin-dir /sys/fs/bpf/ztunnel --run-dir /run/ztunnel
    """
    if context.selection.is_cluster:
        _from_cluster(context, timeout_s, clean_nodes=not keep_nodes)
    else:
        _from_machine(context)


def _from_cluster(context: Context, timeout_s: float, *, clean_nodes: bool) -> None:
    from ztctl.cluster.removal import remove_objects  # noqa: PLC0415  imports a large library

    rows = []
    is_table = context.output_format is Format.TABLE
    with closing(context.api_server()) as api_server:
        for obj in remove_objects(
            api_server,
            timeout_s,
            lambda text: click.echo(text, err=not is_table),
            clean_nodes=clean_nodes,
        ):
            if is_table:
                click.echo(f"removed {title(obj)}")
            rows.append({"removed": obj["kind"], **_name(obj)})
    if not is_table:
        context.print_rows(rows, ())
    elif not rows:
        click.echo("nothing to remove")


def _name(obj: Object) -> Row:
    metadata = obj["metadata"]
    return {"namespace": metadata.get("namespace", ""), "name": metadata["name"]}


def _from_machine(context: Context) -> None:
    targets = context.targets_if_any()
    for target in targets:
        removal.require_stopped(target)
    rows = [
        {"node": target.node, "removed": kind, "path": str(path)}
        for target in targets
        for kind, path in removal.remove(target)
    ]
    if context.output_format is Format.TABLE and not rows:
        click.echo("nothing to remove on this machine; hint: select a cluster with --context NAME")
    else:
        context.print_rows(rows, COLUMNS)
