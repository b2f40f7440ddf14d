# SPDX-License-Identifier: Apache-2.0
"""Options that commands share, accepted before and after the command's name.

@click.command()
@target_options
@output_option
@click.pass_obj
def status(context: Context) -> None: ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ztctl import output
from ztctl.errors import NotReachableError
from ztctl.output import Column, Format, Row
from ztctl.target_selection import TargetSelection
from ztctl.targets import Target, TransportKind

if TYPE_CHECKING:
    from ztctl.cluster.api_client import ApiServer

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Context:
    """The values of the shared options of one invocation."""

    output_format: Format = Format.TABLE
    selection: TargetSelection = field(default_factory=TargetSelection)

    def api_server(self) -> ApiServer:
        """The selected cluster's API server. The caller closes it. Raises CommandError."""
        from ztctl.cluster.api_client import ApiServer  # noqa: PLC0415  a large library

        return ApiServer(self.selection.kubeconfig, self.selection.kube_context)

    def targets(self) -> list[Target]:
        """The selected nodes, at least one. Raises CommandError."""
        return self.selection.resolve()

    def targets_if_any(self) -> list[Target]:
        """The selected nodes, possibly none: for commands that are safe to repeat."""
        try:
            return self.selection.resolve()
        except NotReachableError:
            return []

    def print_rows(self, rows: Sequence[Row], columns: Sequence[Column]) -> None:
        """Print rows in the selected format."""
        click.echo(output.render_rows(rows, columns, self.output_format))


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Store an option's value. An option after the command overrides one before it."""
    context = ctx.ensure_object(Context)
    if value is None or _is_overridden(ctx, param, context):
        return
    if param.name == "output_format":
        context.output_format = Format(value)
    elif param.name == "transport":
        context.selection = replace(context.selection, transport=TransportKind(value))
    else:
        context.selection = replace(context.selection, **{str(param.name): value})


def _is_overridden(ctx: click.Context, param: click.Parameter, context: Context) -> bool:
    """An environment variable never overrides an option."""
    is_set = getattr(context.selection, str(param.name), None) is not None
    return is_set and ctx.get_parameter_source(str(param.name)) is ParameterSource.ENVIRONMENT


def output_option(command: Command) -> Command:
    """Add `-o table|json|yaml`."""
    return click.option(
        "-o",
        "--output",
        "output_format",
        type=click.Choice([form.value for form in Format]),
        expose_value=False,
        callback=_store,
        help="Output format.  [default: table]",
    )(command)


def cluster_options(command: Command) -> Command:
    """Add `--kubeconfig` and `--context`."""
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for name, destination, kind, text in (
        ("--context", "kube_context", str, "Kubeconfig context.  [default: the current one]"),
        ("--kubeconfig", "kubeconfig", file, "Kubeconfig file.  [default: the same as kubectl]"),
    ):
        command = click.option(
            name, destination, type=kind, expose_value=False, callback=_store, help=text
        )(command)
    return command


def lab_or_cluster_options(command: Command) -> Command:
    """Add `--lab`, `--kubeconfig` and `--context`."""
    return _lab_option(cluster_options(command))


def _lab_option(command: Command) -> Command:
    return click.option(
        "--lab",
        envvar="ZTCTL_LAB",
        expose_value=False,
        callback=_store,
        help="Name of a lab on this machine.",
    )(command)


def target_options(command: Command) -> Command:
    """Add the options that select nodes: a lab's, a cluster's, or one by its directories."""
    transport = click.Choice([kind.value for kind in TransportKind])
    options = (
        ("--node", str, "Node of the lab or cluster.  [default: all]"),
        ("--transport", transport, "How to reach a cluster's agents.  [default: auto]"),
        ("--run-dir", click.Path(path_type=Path), "Run directory of the agent."),
        ("--pin-dir", click.Path(path_type=Path), "Directory of the pinned BPF maps."),
    )
    for name, kind, text in reversed(options):
        command = click.option(name, type=kind, expose_value=False, callback=_store, help=text)(
            command
        )
    return lab_or_cluster_options(command)
