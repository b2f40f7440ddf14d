# SPDX-License-Identifier: Apache-2.0
"""Options and error handling that the lab commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ztctl.context import Context
from ztctl.errors import EXIT_FAILED, CommandError
from ztunnel.lab import READY_TIMEOUT_S, LabError

DEFAULT_NAME = "lab"

Command = TypeVar("Command", bound=Callable[..., Any])


def _lab_name(ctx: click.Context, _: click.Parameter, value: str | None) -> str:
    """`ztctl lab up --name x` and `ztctl --lab x lab up` are equivalent."""
    return value or ctx.ensure_object(Context).selection.lab or DEFAULT_NAME


def name_option(command: Command) -> Command:
    """Add `--name`."""
    return click.option(
        "--name",
        envvar="ZTCTL_LAB",
        show_envvar=True,
        callback=_lab_name,
        help=f"Name of the lab.  [default: {DEFAULT_NAME}]",
    )(command)


def namespace_option(command: Command) -> Command:
    """Add `-n, --namespace`."""
    return click.option(
        "-n", "--namespace", default="default", show_default=True, help="Namespace of the object."
    )(command)


def files_option(*, required: bool) -> Callable[[Command], Command]:
    """Add `-f, --filename`."""
    return click.option(
        "-f",
        "--filename",
        "files",
        multiple=True,
        required=required,
        type=click.Path(exists=True, path_type=Path),
        help="A manifest or a directory of manifests. May be repeated.",
    )


def wait_options(command: Command) -> Command:
    """Add `--wait` and `--timeout`."""
    command = click.option(
        "--timeout",
        "timeout_s",
        type=float,
        default=READY_TIMEOUT_S,
        show_default=True,
        help="Seconds to wait.",
    )(command)
    return click.option(
        "--wait/--no-wait", default=True, show_default=True, help="Wait until all pods are ready."
    )(command)


def component_argument(command: Command) -> Command:
    """Add the arguments NODE and COMPONENT."""
    choice = click.Choice(["agent", "proxy", "gateway", "dns"])
    return click.argument("node")(click.argument("component", type=choice)(command))


@contextmanager
def lab_errors() -> Iterator[None]:
    """Report a LabError as an error of the command, without a traceback."""
    try:
        yield
    except LabError as error:
        raise CommandError(str(error)) from error


def print_progress(line: str) -> None:
    """Print progress to standard error."""
    click.echo(line, err=True)


def exit_with(problems: Sequence[str]) -> None:
    """Print problems and exit with EXIT_FAILED; does nothing if there are none."""
    for problem in problems:
        click.echo(f"problem: {problem}", err=True)
    if problems:
        sys.exit(EXIT_FAILED)
