# SPDX-License-Identifier: Apache-2.0
"""`ztctl redirect`: what the kernel captures, read from the pinned maps.

Needs neither agent nor proxy, and opens the maps read-only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import click

from ztctl import output
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError, NotReachableError
from ztctl.output import Column, Format
from ztctl.pod_names import PodNames
from ztctl.targets import Installation
from ztunnel.datapath.bpf.layout import Role
from ztunnel.datapath.bpf.maps import FlowEntry, Maps, PodCounters, PodEntry

POD_COLUMNS = (
    Column("NODE", "node"),
    Column("POD", "pod"),
    Column("ADDRESSES", "addresses"),
    Column("NETNS", "netns_cookie"),
    Column("REDIRECTED", "redirected"),
    Column("REFUSED", "refused"),
    Column("LOCAL", "local"),
    Column("PROXY", "own"),
    Column("DIRECT", "direct"),
    Column("DNS", "dns"),
    Column("OPEN", "open"),
)
FLOW_COLUMNS = (
    Column("NODE", "node"),
    Column("POD", "pod"),
    Column("KIND", "kind"),
    Column("SOURCE", "source"),
    Column("TO", "to"),
    Column("ORIGINAL", "original"),
    Column("AGE", "age"),
)
_KINDS = {Role.REDIRECTED: "outbound", Role.OWN: "inbound"}


@dataclass(frozen=True)
class Snapshot:
    """One node's maps at one moment."""

    installation: Installation
    pods: tuple[PodEntry, ...]
    counters: dict[int, PodCounters]
    flows: tuple[FlowEntry, ...]
    stats: dict[str, int]


@contextmanager
def opened(installation: Installation) -> Iterator[Maps]:
    """The maps of a node, without write access. Raises CommandError."""
    if installation.pod:
        raise CommandError(
            "the kernel's maps are read on their node: kubectl -n ztunnel-system exec "
            f"{installation.pod} -c agent -- ztctl redirect list"
        )
    tried = f"opened the maps under {installation.pin_dir / 'maps'}"
    try:
        maps = Maps(installation.pin_dir, read_only=True)
    except FileNotFoundError as error:
        raise NotReachableError(
            f"{tried}: nothing is pinned there; start the agent, or name the --pin-dir"
        ) from error
    except PermissionError as error:
        raise CommandError(f"{tried}: permission denied; run as root, or with CAP_BPF") from error
    try:
        yield maps
    finally:
        maps.close()


def snapshot(installation: Installation, maps: Maps) -> Snapshot:
    """Read everything once."""
    return Snapshot(
        installation,
        pods=tuple(maps.pods()),
        counters=maps.pod_stats(),
        flows=tuple(maps.flows()),
        stats=maps.stats(),
    )


def pod_rows(shot: Snapshot, names: PodNames) -> list[dict[str, Any]]:
    """One row per enrolled pod."""
    live = Counter(flow.netns_cookie for flow in shot.flows)
    zero = PodCounters(0, 0, 0, 0)
    return [
        {
            "node": shot.installation.node,
            "pod": names.of(pod),
            "addresses": list(pod.addresses),
            "netns_cookie": pod.netns_cookie,
            **asdict(shot.counters.get(pod.netns_cookie, zero)),
            "open": live[pod.netns_cookie],
        }
        for pod in shot.pods
    ]


def flow_row(shot: Snapshot, flow: FlowEntry, names: PodNames) -> dict[str, Any]:
    """A connection as people read it: for `inbound` the original address is the true client."""
    by_cookie = {pod.netns_cookie: pod for pod in shot.pods}
    pod = by_cookie.get(flow.netns_cookie)
    age = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - flow.born_ns) / 1e9
    return {
        "node": shot.installation.node,
        "pod": names.of(pod) if pod else str(flow.netns_cookie),
        "kind": _KINDS.get(flow.role, flow.role.name.lower()),
        "source": str(flow.source),
        "to": flow.port,
        "original": str(flow.address),
        "age": output.duration(age),
        "seconds": round(age, 3),
        "netns_cookie": flow.netns_cookie,
    }


@click.group()
def redirect() -> None:
    """What the kernel captures, from its maps; works while agent and proxy are down.

    \b
    redirected  connections that went to the proxy instead of where they were dialled
    refused     connections to our own ports, or of a kind that can't be carried
    local       connections inside the pod, left alone
    proxy       connections the proxy made inside the pod
    direct      connections to authorised pods of the node, without the proxy
    dns         queries by UDP, and connections to name servers by TCP, that went to the proxy
    open        connections between app and proxy now
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
    found = []
    for each in context.installations():
        with opened(each) as maps:
            found += pod_rows(snapshot(each, maps), PodNames(each))
    context.print_rows(found, POD_COLUMNS)


@redirect.command()
@target_options
@output_option
@click.argument("pod")
@click.pass_obj
def show(context: Context, pod: str) -> None:
    """Show a pod's live connections with their original destinations.

    POD is a name, namespace/name, an address or a netns cookie.

    \b
    Examples:
      ztctl redirect show client
      ztctl redirect show 10.244.1.2 -o json
    """
    pods, flows, seen = [], [], []
    for each in context.installations():
        names = PodNames(each)
        with opened(each) as maps:
            shot = snapshot(each, maps)
        rows = pod_rows(shot, names)
        seen += rows
        wanted = [row for row in rows if _is_meant(row, pod)]
        cookies = {row["netns_cookie"] for row in wanted}
        pods += wanted
        flows += [
            flow_row(shot, flow, names) for flow in shot.flows if flow.netns_cookie in cookies
        ]
    if not pods:
        have = ", ".join(row["pod"] for row in seen) or "none"
        raise CommandError(f"looked for pod {pod!r} in the maps; captured are: {have}")
    if context.form is Format.TABLE:
        click.echo(output.table(POD_COLUMNS, pods) + "\n\n" + output.table(FLOW_COLUMNS, flows))
    else:
        click.echo(output.data({"pods": pods, "connections": flows}, context.form))


def _is_meant(row: dict[str, Any], wanted: str) -> bool:
    name = row["pod"]
    return wanted in (
        name,
        name.rpartition("/")[2],
        str(row["netns_cookie"]),
        *row["addresses"],
    )


@redirect.command()
@target_options
@output_option
@click.option("--interval", type=click.FloatRange(0.02, 60), default=0.2, help="Seconds.")
@click.option("--for", "seconds", type=float, help="Stop after so many seconds. Default: never.")
@click.pass_obj
def watch(context: Context, interval: float, seconds: float | None) -> None:
    """Follow what changes: pods captured and released, connections, counters.

    The maps are read every --interval; a connection that lives shorter shows in the counters.
    With -o json each change is a line.

    \b
    Examples:
      ztctl redirect watch
      ztctl redirect watch --for 10 -o json
    """
    stop_at = None if seconds is None else time.monotonic() + seconds
    with suppress(KeyboardInterrupt):  # the usual way to end it
        for events in _followed(context, interval, stop_at):
            for event in events:
                click.echo(_line(context.form, event))


def _followed(
    context: Context, interval: float, stop_at: float | None
) -> Iterator[Iterator[dict[str, Any]]]:
    """The changes since the reading before, for each node in turn."""
    before: dict[Installation, Snapshot] = {}
    while True:
        for each in context.installations():
            with opened(each) as maps:
                shot = snapshot(each, maps)
            if each in before:
                yield changes(before[each], shot, PodNames(each))
            before[each] = shot
        if stop_at is not None and time.monotonic() >= stop_at:
            return
        time.sleep(interval)


def changes(before: Snapshot, after: Snapshot, names: PodNames) -> Iterator[dict[str, Any]]:
    """What happened between two snapshots, as rows of `event`, `pod` and `detail`."""
    old, new = set(before.pods), set(after.pods)
    for pod in sorted(new - old, key=lambda pod: pod.netns_cookie):
        yield _event(after, "captured", names.of(pod), ",".join(pod.addresses))
    yield from _flow_changes(before, after, names)
    yield from _counter_changes(before, after, names)
    for pod in sorted(old - new, key=lambda pod: pod.netns_cookie):
        yield _event(after, "released", names.of(pod), ",".join(pod.addresses))


def _flow_changes(before: Snapshot, after: Snapshot, names: PodNames) -> Iterator[dict[str, Any]]:
    for event, shot, other in (("opened", after, before), ("closed", before, after)):
        known = set(other.flows)
        for flow in shot.flows:
            if flow not in known:
                row = flow_row(shot, flow, names)
                detail = f"{row['kind']} {row['source']} -> {row['original']}"
                yield _event(after, event, row["pod"], detail)


def _counter_changes(
    before: Snapshot, after: Snapshot, names: PodNames
) -> Iterator[dict[str, Any]]:
    zero = PodCounters(0, 0, 0, 0)
    for pod in after.pods:
        old = asdict(before.counters.get(pod.netns_cookie, zero))
        new = asdict(after.counters.get(pod.netns_cookie, zero))
        if delta := _increase(old, new):
            yield _event(after, "counted", names.of(pod), delta)
    if delta := _increase(before.stats, after.stats):
        yield _event(after, "counted", "", delta)


def _increase(old: dict[str, int], new: dict[str, int]) -> str:
    grown = {name: new[name] - old.get(name, 0) for name in new}
    return " ".join(f"{name}+{by}" for name, by in grown.items() if by > 0)


def _event(shot: Snapshot, event: str, pod: str, detail: str) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "node": shot.installation.node,
        "event": event,
        "pod": pod,
        "detail": detail,
    }


def _line(form: Format, event: dict[str, Any]) -> str:
    if form is Format.TABLE:
        clock = event["time"][11:23]
        pod = event["pod"] or "(node)"
        return f"{clock}  {event['node']}  {event['event']:<8}  {pod}  {event['detail']}"
    if form is Format.YAML:
        return "---\n" + output.data(event, form)
    return output.line(event)
