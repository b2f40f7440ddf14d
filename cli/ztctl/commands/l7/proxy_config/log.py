# SPDX-License-Identifier: Apache-2.0
"""`ztctl proxy-config log POD`: Envoy's log levels."""

from __future__ import annotations

import re

import click

from ztctl.commands.l7.proxy_config.pods import find_pod, pod_argument
from ztctl.context import Context
from ztctl.output import Column

LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")
_COLUMNS = (Column("LOGGER", "logger"), Column("LEVEL", "level"))
_SETTING = re.compile(rf"(?:[a-z0-9_]+=)?(?:{'|'.join(LEVELS)})")


@click.command()
@pod_argument
@click.option(
    "--level",
    metavar="[LOGGER=]LEVEL",
    help=f"Set the level of a logger, or of all: {', '.join(LEVELS)}.",
)
@click.pass_obj
def log(context: Context, pod: str, namespace: str, level: str | None) -> None:
    """Show Envoy's log levels; with --level, change them first.

    A level applies until Envoy restarts.

    \b
    Examples:
      ztctl proxy-config log waypoint
      ztctl proxy-config log waypoint --level rbac=debug
    """
    if level is not None and not _SETTING.fullmatch(level):
        raise click.UsageError(
            f"{level!r} is not [LOGGER=]LEVEL; the levels are {', '.join(LEVELS)}"
        )
    found = find_pod(context, pod, namespace)
    reply = found.view("log") if level is None else found.set_log_level(level)
    rows = [{"logger": name, "level": each} for name, each in sorted(reply["loggers"].items())]
    context.print_rows(rows, _COLUMNS)
