# SPDX-License-Identifier: Apache-2.0
"""How every command prints: rows as a table for people, as JSON or YAML for machines.

A row is plain data (what json can hold). A table shows chosen columns, the other formats the
whole row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Row = Mapping[str, Any]


class Format(StrEnum):
    """The values of `-o`."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and where the value is, as `outer.inner`."""

    heading: str
    field: str


def rows(found: Sequence[Row], columns: Sequence[Column], form: Format) -> str:
    """All rows in one format; a table always has its headings."""
    if form is Format.TABLE:
        return table(columns, found)
    return data(list(found), form)


def data(value: Any, form: Format) -> str:
    """Any plain data as JSON or YAML."""
    if form is Format.YAML:
        import yaml  # noqa: PLC0415  slow to import, seldom wanted

        return str(yaml.safe_dump(value, sort_keys=False)).rstrip("\n")
    return json.dumps(value, indent=2)


def line(value: Any) -> str:
    """Any plain data as JSON on one line, for streams."""
    return json.dumps(value)


def facts(value: Row) -> str:
    """One record for people: a line per field, nested ones indented by their path."""
    flat = list(_flattened(value))
    width = max((len(name) for name, _ in flat), default=0)
    return "\n".join(f"{name:<{width}}  {cell(text)}".rstrip() for name, text in flat)


def table(columns: Sequence[Column], found: Iterable[Row]) -> str:
    """Left-aligned columns, two spaces apart."""
    lines = [[column.heading for column in columns]]
    lines += [[cell(lookup(row, column.field)) for column in columns] for row in found]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def lookup(row: Row, field: str) -> Any:
    """The value at a dotted path; None when any step is missing."""
    value: Any = row
    for name in field.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def cell(value: Any) -> str:
    """A value as people write it: `-` for nothing, `yes` and `no`, lists with commas."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={cell(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ",".join(cell(each) for each in value)
    return str(value)


def duration(seconds: float) -> str:
    """A span in its two largest units, as kubectl prints ages: `3m20s`, `23h5m`."""
    left = max(0, int(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"


def _flattened(value: Row, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, each in value.items():
        if isinstance(each, Mapping) and each:
            yield from _flattened(each, f"{prefix}{name}.")
        else:
            yield prefix + name, each
