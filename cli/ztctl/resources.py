# SPDX-License-Identifier: Apache-2.0
"""`list` commands for the resources of the agent's admin API, for example `ztctl workload list`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from ztctl import admin_client
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError, NotReachableError
from ztctl.output import Column, Format, Row
from ztctl.targets import Target


@dataclass(frozen=True)
class Resource:
    """A resource of the admin API and its table.

    `noun`: the command's name. `path`: of the list in the admin API, for example `/v1/workloads`.
    `per_node`: each node has its own objects, and rows get a `node` field; otherwise all nodes
    return the same objects. `computed`: fields of the table that are derived from a row.
    """

    noun: str
    path: str
    summary: str
    columns: tuple[Column, ...]
    per_node: bool
    computed: Mapping[str, Callable[[Row], Any]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The field of the response that contains the list."""
        return self.path.rpartition("/")[2]


def list_group(resource: Resource) -> click.Group:
    """The command group of a resource, with its `list` command."""

    @click.command(
        name="list",
        help=f"{resource.summary}\n\n\b\nExamples:\n  ztctl {resource.noun} list\n"
        f"  ztctl {resource.noun} list -o json",
    )
    @target_options
    @output_option
    @click.pass_obj
    def list_(context: Context) -> None:
        rows, errors = fetch_rows(context.targets(), resource)
        if rows or not errors:
            is_table = context.output_format is Format.TABLE
            context.print_rows(
                _with_computed(resource, rows) if is_table else rows, resource.columns
            )
        raise_if_any(errors)

    return click.Group(resource.noun, commands=[list_], help=resource.summary)


def fetch_rows(targets: Sequence[Target], resource: Resource) -> tuple[list[Any], list[str]]:
    """The rows of all nodes, and an error message for each node or worker that did not respond."""
    rows: list[Any] = []
    errors: list[str] = []
    for target in targets:
        try:
            response = admin_client.get(target.run_dir, resource.path)
        except CommandError as error:
            errors.append(f"{target.node}: {error.message}")
            continue
        errors += [
            f"{target.node}: proxy worker {pid} did not respond"
            for pid in response.get("unanswered") or []
        ]
        for item in [*response[resource.key], *_refused_pods(response)]:
            row = {"node": target.node, **item} if resource.per_node else item
            if resource.per_node or row not in rows:
                rows.append(row)
    return rows, errors


def raise_if_any(errors: Sequence[str]) -> None:
    """Raise NotReachableError with all messages, unless there is none."""
    if errors:
        raise NotReachableError("; ".join(errors))


def _refused_pods(response: Row) -> list[Row]:
    """Pods that are labeled for the mesh but cannot be captured, as rows of `pod list`."""
    return [
        {
            "workload": pod["pod"].rpartition("Pod/")[2],
            "state": "refused",
            "problem": pod["reason"],
        }
        for pod in response.get("refused") or []
    ]


def _with_computed(resource: Resource, rows: Sequence[Row]) -> list[Row]:
    return [
        {**row, **{name: compute(row) for name, compute in resource.computed.items()}}
        for row in rows
    ]
