# SPDX-License-Identifier: Apache-2.0
"""Reference of the command lines, from click's own description of them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import click

from scripts.docgen.markdown import code, sentence, table
from ztctl.main import cli as ztctl_cli
from ztunnel.main import cli as ztunnel_cli

_DEFAULT = re.compile(r"\s*\[default: (.*?)\]\s*$")


def ztctl() -> str:
    """Every visible command of ztctl."""
    return "\n\n".join(_command(ztctl_cli, "ztctl", None))


def ztunnel() -> str:
    """Every process of ztunnel."""
    return "\n\n".join(_command(ztunnel_cli, "ztunnel", None))


def options(command: click.Command) -> dict[str, click.Option]:
    """The options of one command by each of their spellings."""
    return {
        spelling: param
        for param in command.params
        if isinstance(param, click.Option)
        for spelling in (*param.opts, *param.secondary_opts)
    }


def _command(command: click.Command, path: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, parent=parent, info_name=path.rsplit(" ", 1)[-1])
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield f"## {path}\n\n```\n{usage}\n```"
    yield from _help(command.help or "")
    rows = [_option(each, context) for each in command.params if _is_visible_option(each)]
    if rows:
        yield table(("option", "value", "default", "environment", "meaning"), rows)
    if command.epilog:
        yield from _help(command.epilog)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _command(found, f"{path} {name}", context)


def _is_visible_option(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and not param.hidden


def _option(param: click.Parameter, context: click.Context) -> tuple[str, ...]:
    assert isinstance(param, click.Option)
    text, default = param.help or "", _default(param, context)
    if (match := _DEFAULT.search(text)) is not None:
        text, default = text[: match.start()], match[1]
    spellings = ", ".join(map(code, (*param.opts, *param.secondary_opts)))
    value = "" if param.is_flag else _value(param, context)
    variable = param.envvar if isinstance(param.envvar, str) else ""
    required = "required" if param.required else default
    return spellings, value, required, code(variable), sentence(text)


def _value(param: click.Option, context: click.Context) -> str:
    if isinstance(param.type, click.IntRange | click.FloatRange):
        low, high = param.type.min, param.type.max
        kind = "integer" if isinstance(param.type, click.IntRange) else "number"
        return f"{kind}, {low} to {high}" if high is not None else f"{kind}, {low} or more"
    return code(param.make_metavar(context))


def _default(param: click.Option, context: click.Context) -> str:
    default = param.get_default(context, call=False)
    if param.is_flag:
        return code("on") if default is True else ""
    if default in (None, "", ()) or callable(default) or "UNSET" in repr(default):
        return ""
    return code(str(default))


def _help(text: str) -> Iterator[str]:
    """Paragraphs as prose; those that click must not wrap (after \\b) as code."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if "\b" in paragraph:
            text = textwrap.dedent(paragraph.replace("\b", "")).strip("\n")
            yield f"```\n{text}\n```"
        elif paragraph.strip():
            yield " ".join(paragraph.split())
