# SPDX-License-Identifier: Apache-2.0
"""`ztctl log level`: what agent and proxy write, shown and changed while they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ztctl import admin_client
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError, NotReachableError
from ztctl.output import Column, Row

LEVELS = ("debug", "info", "warning", "error", "off")
DEFAULT = "default"
_PATH = "/v1/log"
_COLUMNS = (
    Column("NODE", "on"),
    Column("SCOPE", "scope"),
    Column("LEVEL", "level"),
    Column("SAMPLE", "sample"),
)


@click.group()
def log() -> None:
    """What agent and proxy log, changed while they run."""


@log.command()
@click.argument("settings", nargs=-1, metavar="[SCOPE=LEVEL]...")
@click.option(
    "--sample",
    type=click.FloatRange(0, 1),
    help="Share of the orderly connections that get a line, in the access scopes named.",
)
@target_options
@output_option
@click.pass_obj
def level(context: Context, settings: tuple[str, ...], sample: float | None) -> None:
    """Show the levels in force; with SCOPE=LEVEL, change them first.

    \b
    Scopes:
      process           agent and proxy themselves
      access            one line for each connection
      access/NAMESPACE  the same for pods of a namespace
    Levels:
      debug, info, warning, error, off; default for what it was at the start
      In access scopes `warning` means only what failed or was refused.

    A level lasts until the agent ends. What failed is never sampled.

    \b
    Examples:
      ztctl log level
      ztctl log level process=debug
      ztctl log level access=warning access/shop=info
      ztctl log level access/shop=info --sample 0.01
      ztctl log level access/shop=default
    """
    change = parse(settings, sample)
    rows: list[Row] = []
    problems = []
    for each in context.installations():
        try:
            found = (
                admin_client.patch(each.run_dir, _PATH, change)
                if change
                else admin_client.get(each.run_dir, _PATH)
            )
        except CommandError as error:
            problems.append(f"{each.node}: {error.message}")
            continue
        rows += [{"on": each.node, **row} for row in _rows(found)]
    if rows or not problems:
        context.print_rows(rows, _COLUMNS)
    if problems:
        raise NotReachableError("; ".join(problems))


def parse(settings: Sequence[str], sample: float | None) -> dict[str, Any]:
    """The change in the agent's form; empty for none. Raises click.UsageError."""
    change: dict[str, Any] = {}
    sampled = False
    for setting in settings:
        scope, separator, value = setting.partition("=")
        if not separator or value not in (*LEVELS, DEFAULT):
            raise click.UsageError(
                f"{setting!r} is not SCOPE=LEVEL; levels are {', '.join((*LEVELS, DEFAULT))}"
            )
        if scope == "process":
            change["process"] = None if value == DEFAULT else value
            continue
        kind, slash, namespace = scope.partition("/")
        if kind != "access" or bool(slash) != bool(namespace):
            raise click.UsageError(f"no scope {scope!r}; use process, access or access/NAMESPACE")
        rule = None if value == DEFAULT else {"level": value}
        if rule is not None and sample is not None:
            rule["sample"] = sample  # type: ignore[assignment]  # of JSON
            sampled = True
        if namespace:
            change.setdefault("namespaces", {})[namespace] = rule
        else:
            change["access"] = rule
    if sample is not None and not sampled:
        raise click.UsageError("--sample needs an access scope, as in access=info --sample 0.1")
    return change


def _rows(found: Row) -> list[dict[str, Any]]:
    rules = {"access": found["access"]}
    rules |= {f"access/{name}": rule for name, rule in sorted(found["namespaces"].items())}
    return [
        {"scope": "process", "level": found["process"]},
        *({"scope": scope, **rule} for scope, rule in rules.items()),
    ]
