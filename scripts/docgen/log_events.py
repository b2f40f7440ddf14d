# SPDX-License-Identifier: Apache-2.0
"""Reference of the log events, by scanning the calls of structlog's loggers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.docgen.markdown import ROOT, code, sources, table

_LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
_LOGGERS = ("log", "_log", "logger")
_ACCESS = ("access_log", "_access_log")


@dataclass(frozen=True, order=True)
class Event:
    """One call of a logger."""

    event: str
    level: str
    fields: tuple[str, ...]
    module: str
    access: bool


def process_table() -> str:
    """Events of the processes' own logs."""
    return _table(access=False)


def access_table() -> str:
    """Lines of the access log that have a fixed name."""
    return _table(access=True)


def _table(*, access: bool) -> str:
    rows = (
        (each.event, each.level, ", ".join(map(code, each.fields)), code(each.module))
        for each in sorted(set(_scan()))
        if each.access is access
    )
    return table(("event", "level", "fields", "module"), rows)


def _scan() -> Iterator[Event]:
    for path in sources("ztunnel", "cli/ztctl"):
        module = str(path.relative_to(ROOT)).removesuffix(".py").replace("/", ".")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (found := _event(node, module)) is not None:
                yield found


def _event(call: ast.Call, module: str) -> Event | None:
    function = call.func
    if not isinstance(function, ast.Attribute) or function.attr not in _LEVELS or not call.args:
        return None
    logger = function.value
    name = logger.id if isinstance(logger, ast.Name) else getattr(logger, "attr", "")
    if name not in (*_LOGGERS, *_ACCESS):
        return None
    text = call.args[0]
    if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
        return None
    fields = tuple(word.arg or "..." for word in call.keywords if word.arg != "exc_info")
    return Event(text.value, function.attr, fields, module, name in _ACCESS)
