# SPDX-License-Identifier: Apache-2.0
"""`ztctl redirect`: captured pods and their connections, read from the pinned BPF maps.

The commands need neither agent nor proxy, and open the maps read-only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click

from ztctl import output
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError
from ztctl.node.map_changes import changes
from ztctl.node.map_snapshot import Snapshot, flow_row, open_maps, pod_rows, read_snapshot
from ztctl.node.pod_names import PodNames
from ztctl.output import Column, Format
from ztctl.targets import Target

POD_COLUMNS = (
    Column("NODE", "node"),
    Column("POD", "pod"),
    Column("ADDRESSES", "addresses"),
    Column("NETNS", "netns_cookie"),
    Column("REDIRECTED", "redirected"),
    Column("REFUSED", "refused"),
    Column("LOCAL", "local"),
    Column("PROXY", "proxy_originated"),
    Column("SAME-NODE", "same_node_bypass"),
    Column("DNS", "dns"),
    Column("OPEN", "open"),
)
FLOW_COLUMNS = (
    Column("NODE", "node"),
    Column("POD", "pod"),
    Column("KIND", "kind"),
    Column("SOURCE", "source"),
    Column("TO", "to"),
    Column("ORIGINAL-DST", "original_dst"),
    Column("AGE", "age"),
)


@click.group()
def redirect() -> None:
    """Captured pods and connections, from the BPF maps. Works while agent and proxy are down.

    \b
    redirected  connections redirected to the proxy
    refused     connections to reserved ports, or of a type that cannot be proxied
    local       connections inside the pod, not redirected
    proxy       connections opened by the proxy in the pod's network namespace
    same-node   connections to authorized pods of the node, by the same-node bypass
    dns         UDP queries and TCP connections to name servers, redirected to the proxy
    open        open connections between app and proxy
    """


@redirect.command(name="list")
@target_options
@output_option
@click.pass_obj
def list_(context: Context) -> None:
    """List the captured pods with their counters.

    \b
    Examples:
      ztctl redirect list
      ztctl redirect list --lab lab --node node1 -o json
    """
    rows = []
    for target in context.targets():
        with open_maps(target) as maps:
            rows += pod_rows(read_snapshot(target, maps), PodNames(target))
    context.print_rows(rows, POD_COLUMNS)


@redirect.command()
@target_options
@output_option
@click.argument("pod")
@click.pass_obj
def show(context: Context, pod: str) -> None:
    """Show a pod's open connections with their original destinations.

    POD is NAME, NAMESPACE/NAME, an address or a netns cookie.

    \b
    Examples:
      ztctl redirect show client
      ztctl redirect show 10.244.1.2 -o json
    """
    pods, flows, captured = [], [], []
    for target in context.targets():
        names = PodNames(target)
        with open_maps(target) as maps:
            snapshot = read_snapshot(target, maps)
        rows = pod_rows(snapshot, names)
        captured += rows
        selected = [row for row in rows if _matches(row, pod)]
        cookies = {row["netns_cookie"] for row in selected}
        pods += selected
        flows += [
            flow_row(snapshot, flow, names)
            for flow in snapshot.flows
            if flow.netns_cookie in cookies
        ]
    if not pods:
        known = ", ".join(row["pod"] for row in captured) or "none"
        raise CommandError(f"pod {pod!r} is not captured; hint: the captured pods are: {known}")
    if context.output_format is Format.TABLE:
        tables = output.render_table(POD_COLUMNS, pods), output.render_table(FLOW_COLUMNS, flows)
        click.echo("\n\n".join(tables))
    else:
        found = {"pods": pods, "connections": flows}
        click.echo(output.render_data(found, context.output_format))


def _matches(row: dict[str, Any], reference: str) -> bool:
    name = row["pod"]
    return reference in (
        name,
        name.rpartition("/")[2],
        str(row["netns_cookie"]),
        *row["addresses"],
    )


@redirect.command()
@target_options
@output_option
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.02, 60),
    default=0.2,
    show_default=True,
    help="Seconds between reads of the maps.",
)
@click.option(
    "--for", "duration_s", type=float, help="Seconds after which to stop.  [default: never]"
)
@click.pass_obj
def watch(context: Context, interval_s: float, duration_s: float | None) -> None:
    """Follow changes: pods captured and released, connections, counters.

    The maps are read at each --interval. Connections that are shorter appear only in the counters.
    With -o json each change is one line.

    \b
    Examples:
      ztctl redirect watch
      ztctl redirect watch --for 10 -o json
    """
    stop_at = None if duration_s is None else time.monotonic() + duration_s
    with suppress(KeyboardInterrupt):  # the usual end of the command
        for events in _follow(context, interval_s, stop_at):
            for event in events:
                click.echo(_render_event(context.output_format, event))


def _follow(
    context: Context, interval_s: float, stop_at: float | None
) -> Iterator[Iterator[dict[str, Any]]]:
    """The changes since the previous snapshot, for each node in turn."""
    previous: dict[Target, Snapshot] = {}
    while True:
        for target in context.targets():
            with open_maps(target) as maps:
                snapshot = read_snapshot(target, maps)
            if target in previous:
                yield changes(previous[target], snapshot, PodNames(target))
            previous[target] = snapshot
        if stop_at is not None and time.monotonic() >= stop_at:
            return
        time.sleep(interval_s)


def _render_event(output_format: Format, event: dict[str, Any]) -> str:
    if output_format is Format.TABLE:
        clock = event["time"][11:23]
        pod = event["pod"] or "(node)"
        return f"{clock}  {event['node']}  {event['event']:<8}  {pod}  {event['detail']}"
    if output_format is Format.YAML:
        return "---\n" + output.render_data(event, output_format)
    return output.render_json_line(event)
