# SPDX-License-Identifier: Apache-2.0
"""`ztctl workload|service|pod|connection|certificate list` and `status`: what the agent answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from ztctl import admin_client, output
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError, NotReachableError
from ztctl.output import Column, Format, Row
from ztctl.targets import Installation
from ztunnel.mesh.ports import HBONE


@dataclass(frozen=True)
class Listing:
    """One noun: where the agent has it, and its table.

    `per_node`: each node has rows of its own; otherwise all nodes know the same ones.
    `computed`: columns that are worked out from a row, for the table only.
    """

    noun: str
    path: str
    summary: str
    columns: tuple[Column, ...]
    per_node: bool
    computed: Mapping[str, Callable[[Row], Any]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.path.rpartition("/")[2]


def _endpoints(service: Row) -> str:
    endpoints = service.get("endpoints") or []
    return f"{sum(bool(each.get('ready')) for each in endpoints)}/{len(endpoints)}"


def _ports(service: Row) -> list[str]:
    return [f"{each['port']}/{each.get('protocol', 'TCP')}" for each in service.get("ports") or []]


def _remaining(certificate: Row) -> str:
    left = float(certificate.get("not_after") or 0) - time.time()
    return output.duration(left) if left > 0 else "expired"


def _age(connection: Row) -> str:
    return output.duration(time.time() - float(connection.get("started") or time.time()))


def _target(connection: Row) -> Any:
    """The app's address: of the two that a tunnelled connection has, the one not at 15008."""
    dialled = output.lookup(connection, "destination.address")
    through = connection.get("hbone_addr")
    return through if through and str(dialled).endswith(f":{HBONE}") else dialled


def _protocol(connection: Row) -> str:
    if connection.get("same_node"):
        return "DIRECT"
    return "HBONE" if connection.get("hbone_addr") else "TCP"


WORKLOADS = Listing(
    "workload",
    "/v1/workloads",
    "Workloads of the mesh as the agent knows them.",
    (
        Column("NAMESPACE", "namespace"),
        Column("WORKLOAD", "name"),
        Column("NODE", "node"),
        Column("PROTOCOL", "protocol"),
        Column("ADDRESSES", "addresses"),
        Column("READY", "ready"),
        Column("IDENTITY", "identity"),
        Column("NOT CAPTURED", "capture_refused"),
    ),
    per_node=False,
)
SERVICES = Listing(
    "service",
    "/v1/services",
    "Services as the agent knows them.",
    (
        Column("NAMESPACE", "namespace"),
        Column("SERVICE", "name"),
        Column("ADDRESSES", "vips"),
        Column("PORTS", "ports"),
        Column("READY", "endpoints"),
    ),
    per_node=False,
    computed={"ports": _ports, "endpoints": _endpoints},
)
PODS = Listing(
    "pod",
    "/v1/pods",
    "Pods of the node and whether they are captured.",
    (
        Column("NODE", "on"),
        Column("POD", "workload"),
        Column("STATE", "state"),
        Column("ADDRESSES", "addresses"),
        Column("NETNS", "netns_cookie"),
        Column("PROBLEM", "problem"),
    ),
    per_node=True,
)
CONNECTIONS = Listing(
    "connection",
    "/v1/connections",
    "Connections that the proxy carries now, and those between pods of a node without it.",
    (
        Column("NODE", "on"),
        Column("DIRECTION", "direction"),
        Column("SOURCE", "source.address"),
        Column("DESTINATION", "target"),
        Column("SERVICE", "service"),
        Column("PROTOCOL", "protocol"),
        Column("PEER", "peer"),
        Column("SENT", "sent"),
        Column("RECEIVED", "received"),
        Column("AGE", "age"),
    ),
    per_node=True,
    computed={
        "age": _age,
        "target": _target,
        "protocol": _protocol,
        "peer": lambda row: output.lookup(
            row,
            "source.identity" if row.get("direction") == "inbound" else "destination.identity",
        ),
    },
)
CERTIFICATES = Listing(
    "certificate",
    "/v1/certificates",
    "Workload certificates of the node; never their keys.",
    (
        Column("NODE", "on"),
        Column("IDENTITY", "identity"),
        Column("STATE", "state"),
        Column("VALID", "valid"),
        Column("RENEWALS", "renewals"),
        Column("SERIAL", "serial"),
        Column("ERROR", "last_error"),
    ),
    per_node=True,
    computed={"valid": _remaining},
)


def collect(installations: Sequence[Installation], listing: Listing) -> tuple[list[Any], list[str]]:
    """All rows, and what went wrong at which node.

    Rows of `per_node` nouns get `on`, the node that said so; of the others each is shown once.
    """
    found: list[Any] = []
    problems: list[str] = []
    for each in installations:
        try:
            answer = admin_client.get(each.run_dir, listing.path)
        except CommandError as error:
            problems.append(f"{each.node}: {error.message}")
            continue
        problems += [f"{each.node}: proxy worker {pid} gave no answer" for pid in _silent(answer)]
        for row in [*answer[listing.key], *_refused(answer)]:
            told = {"on": each.node, **row} if listing.per_node else row
            if listing.per_node or told not in found:
                found.append(told)
    return found, problems


def _silent(answer: Row) -> Sequence[int]:
    """The pids of workers that did not answer the agent."""
    return answer.get("unanswered") or []


def _refused(answer: Row) -> list[Row]:
    """Pods that are labelled for the mesh but can't be captured, as rows like the others."""
    return [
        {
            "workload": each["pod"].rpartition("Pod/")[2],
            "state": "refused",
            "problem": each["reason"],
        }
        for each in answer.get("refused") or []
    ]


def _for_people(listing: Listing, found: Sequence[Row]) -> list[Row]:
    return [
        {**row, **{name: work(row) for name, work in listing.computed.items()}} for row in found
    ]


def group(listing: Listing) -> click.Group:
    @click.command(
        name="list",
        help=f"{listing.summary}\n\n\b\nExamples:\n  ztctl {listing.noun} list\n"
        f"  ztctl {listing.noun} list -o json",
    )
    @target_options
    @output_option
    @click.pass_obj
    def show(context: Context) -> None:
        found, problems = collect(context.installations(), listing)
        if found or not problems:
            table = context.form is Format.TABLE
            context.print_rows(_for_people(listing, found) if table else found, listing.columns)
        _end_with(problems)

    return click.Group(listing.noun, commands=[show], help=listing.summary)


def _end_with(problems: Sequence[str]) -> None:
    if problems:
        raise NotReachableError("; ".join(problems))


workload = group(WORKLOADS)
service = group(SERVICES)
pod = group(PODS)
connection = group(CONNECTIONS)
certificate = group(CERTIFICATES)


@click.command()
@target_options
@output_option
@click.pass_obj
def status(context: Context) -> None:
    """How the agent and its proxy are: one block per node.

    \b
    Examples:
      ztctl status
      ztctl --lab lab --node node1 status -o yaml
    """
    found, problems = [], []
    for each in context.installations():
        try:
            found.append({"on": each.node, **admin_client.get(each.run_dir, "/v1/status")})
        except CommandError as error:
            problems.append(f"{each.node}: {error.message}")
    if context.form is Format.TABLE:
        click.echo("\n\n".join(map(output.facts, found)), nl=bool(found))
    else:
        click.echo(output.data(found, context.form))
    _end_with(problems)
