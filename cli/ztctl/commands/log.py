# SPDX-License-Identifier: Apache-2.0
"""`ztctl log level`: log levels of agent and proxy, changed at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ztctl import admin_client
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError
from ztctl.output import Column, Row
from ztctl.resources import raise_if_any

LEVELS = ("debug", "info", "warning", "error", "off")
DEFAULT = "default"
_PATH = "/v1/log"
_COLUMNS = (
    Column("NODE", "node"),
    Column("SCOPE", "scope"),
    Column("LEVEL", "level"),
    Column("SAMPLE", "sample"),
)


@click.group()
def log() -> None:
    """Log levels of agent and proxy, changed at run time."""


@log.command()
@click.argument("settings", nargs=-1, metavar="[SCOPE=LEVEL]...")
@click.option(
    "--sample",
    type=click.FloatRange(0, 1),
    help="Fraction of the successful connections to log, for the access scopes in this command.",
)
@target_options
@output_option
@click.pass_obj
def level(context: Context, settings: tuple[str, ...], sample: float | None) -> None:
    """Show the current log levels. With SCOPE=LEVEL, change them first.

    \b
    Scopes:
      process           log of the agent and proxy processes
      access            access log: one line for each connection
      access/NAMESPACE  access log of the pods of a namespace
    Levels:
      debug, info, warning, error, off, or default for the level at start
      In access scopes, `warning` logs only failed and denied connections.

    A level applies until the agent stops. Failed connections are never sampled.

    \b
    Examples:
      ztctl log level
      ztctl log level process=debug
      ztctl log level access=warning access/shop=info
      ztctl log level access/shop=info --sample 0.01
      ztctl log level access/shop=default
    """
    change = parse_change(settings, sample)
    rows: list[Row] = []
    errors = []
    for target in context.targets():
        try:
            if change:
                levels = admin_client.patch(target.run_dir, _PATH, change)
            else:
                levels = admin_client.get(target.run_dir, _PATH)
        except CommandError as error:
            errors.append(f"{target.node}: {error.message}")
            continue
        rows += [{"node": target.node, **row} for row in _rows(levels)]
    if rows or not errors:
        context.print_rows(rows, _COLUMNS)
    raise_if_any(errors)


def parse_change(settings: Sequence[str], sample: float | None) -> dict[str, Any]:
    """The body of the PATCH request; empty without settings. Raises click.UsageError."""
    change: dict[str, Any] = {}
    is_sampled = False
    for setting in settings:
        scope, value = _parse_setting(setting)
        if scope == "process":
            change["process"] = None if value == DEFAULT else value
            continue
        rule: dict[str, Any] | None = None if value == DEFAULT else {"level": value}
        if rule is not None and sample is not None:
            rule["sample"] = sample
            is_sampled = True
        if scope == "access":
            change["access"] = rule
        else:
            change.setdefault("namespaces", {})[scope.removeprefix("access/")] = rule
    if sample is not None and not is_sampled:
        raise click.UsageError("--sample needs an access scope, as in access=info --sample 0.1")
    return change


def _parse_setting(setting: str) -> tuple[str, str]:
    """`SCOPE=LEVEL` as scope and level. Raises click.UsageError."""
    scope, separator, value = setting.partition("=")
    if not separator or value not in (*LEVELS, DEFAULT):
        levels = ", ".join((*LEVELS, DEFAULT))
        raise click.UsageError(f"{setting!r} is not SCOPE=LEVEL; the levels are {levels}")
    kind, slash, namespace = scope.partition("/")
    is_access = kind == "access" and bool(slash) == bool(namespace)
    if scope != "process" and not is_access:
        raise click.UsageError(
            f"unknown scope {scope!r}; the scopes are process, access and access/NAMESPACE"
        )
    return scope, value


def _rows(levels: Row) -> list[dict[str, Any]]:
    rules = {"access": levels["access"]}
    rules |= {f"access/{name}": rule for name, rule in sorted(levels["namespaces"].items())}
    return [
        {"scope": "process", "level": levels["process"]},
        *({"scope": scope, **rule} for scope, rule in rules.items()),
    ]
