# SPDX-License-Identifier: Apache-2.0
"""Output formats that all commands share: tables, JSON and YAML.

A row is plain data (what JSON can hold). A table shows selected columns; JSON and YAML contain the
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
    """A column of a table: its heading, and the dotted path of its value, as `outer.inner`."""

    heading: str
    field: str


def render_rows(rows: Sequence[Row], columns: Sequence[Column], output_format: Format) -> str:
    """Rows in the given format. A table always has its headings."""
    if output_format is Format.TABLE:
        return render_table(columns, rows)
    return render_data(list(rows), output_format)


def render_data(value: Any, output_format: Format) -> str:
    """Plain data as YAML, or as JSON for every other format."""
    if output_format is Format.YAML:
        import yaml  # noqa: PLC0415  slow to import, rarely needed

        return str(yaml.safe_dump(value, sort_keys=False)).rstrip("\n")
    return json.dumps(value, indent=2)


def render_json_line(value: Any) -> str:
    """Plain data as JSON on one line, for streams."""
    return json.dumps(value)


def render_fields(value: Row) -> str:
    """One record as text: a line per field. Nested fields have dotted names."""
    flat = list(_flatten(value))
    width = max((len(name) for name, _ in flat), default=0)
    return "\n".join(f"{name:<{width}}  {format_cell(field)}".rstrip() for name, field in flat)


def render_table(columns: Sequence[Column], rows: Iterable[Row]) -> str:
    """Left-aligned columns, two spaces apart."""
    lines = [[column.heading for column in columns]]
    lines += [[format_cell(lookup(row, column.field)) for column in columns] for row in rows]
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


def format_cell(value: Any) -> str:
    """A value as text: `-` for an empty one, `yes` and `no`, lists separated by commas."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={format_cell(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(format_cell(item) for item in value)
    return str(value)


def format_duration(seconds: float) -> str:
    """A duration in its two largest units, in the style of kubectl's ages: `3m20s`, `23h5m`."""
    left = max(0, int(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"


def _flatten(value: Row, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flatten(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item
