# SPDX-License-Identifier: Apache-2.0
"""The options every command knows, before or after its name: how to print, and where to look.

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
from ztctl.targets import Installation, Selection

if TYPE_CHECKING:
    from ztctl.cluster import Cluster

Command = TypeVar("Command", bound=Callable[..., Any])
VIA = ("auto", "exec", "port-forward")  # `ways.Via`, which is imported only for a cluster


@dataclass
class Context:
    """What the options of this call say."""

    form: Format = Format.TABLE
    selection: Selection = field(default_factory=Selection)

    def cluster(self) -> Cluster:
        """The API server meant. The caller closes it. Raises CommandError."""
        from ztctl.cluster import Cluster  # noqa: PLC0415  a large library

        return Cluster(self.selection.kubeconfig, self.selection.kube_context)

    def installations(self) -> list[Installation]:
        """The nodes to look at, at least one. Raises CommandError."""
        return self.selection.find()

    def installations_or_none(self) -> list[Installation]:
        """The same, but none is fine: for what is safe to repeat."""
        try:
            return self.selection.find()
        except NotReachableError:
            return []

    def print_rows(self, found: Sequence[Row], columns: Sequence[Column]) -> None:
        """Print rows as `-o` says."""
        click.echo(output.rows(found, columns, self.form))


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep what was given; an option after the command overrides one before it."""
    context = ctx.ensure_object(Context)
    if value is None or _comes_second(ctx, param, context):
        return
    if param.name == "form":
        context.form = Format(value)
    else:
        context.selection = replace(context.selection, **{str(param.name): value})


def _comes_second(ctx: click.Context, param: click.Parameter, context: Context) -> bool:
    """The environment counts only where no option was given."""
    given = getattr(context.selection, str(param.name), None) is not None
    return given and ctx.get_parameter_source(str(param.name)) is ParameterSource.ENVIRONMENT


def output_option(command: Command) -> Command:
    """`-o table|json|yaml`."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice([form.value for form in Format]),
        expose_value=False,
        callback=_remember,
        help="How to print.  [default: table]",
    )(command)


def cluster_options(command: Command) -> Command:
    """Which cluster: `--kubeconfig`, `--context`."""
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for name, destination, kind, text in (
        ("--context", "kube_context", str, "One of the kubeconfig's.  [default: its current one]"),
        ("--kubeconfig", "kubeconfig", file, "How to reach the cluster.  [default: as kubectl]"),
    ):
        command = click.option(
            name, destination, type=kind, expose_value=False, callback=_remember, help=text
        )(command)
    return command


def target_options(command: Command) -> Command:
    """Which node or nodes: `--lab` or a cluster, `--node`, `--via`, `--run-dir`, `--pin-dir`."""
    options = (
        ("--lab", str, "A lab on this machine.", "ZTCTL_LAB"),
        ("--node", str, "One node of lab or cluster.  [default: all]", None),
        ("--via", click.Choice(VIA), "To a cluster's agents.  [default: what works]", None),
        ("--run-dir", click.Path(path_type=Path), "The agent's run directory.", None),
        ("--pin-dir", click.Path(path_type=Path), "Where the maps are pinned.", None),
    )
    for name, kind, text, variable in reversed(options):
        command = click.option(
            name,
            type=kind,
            envvar=variable,
            expose_value=False,
            callback=_remember,
            help=text,
        )(command)
    return cluster_options(command)
