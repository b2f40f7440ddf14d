# SPDX-License-Identifier: Apache-2.0
"""Renders rows and target results as Markdown tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.comparison.results import Row
from bench.comparison.targets import TargetResult

_MISSING = "-"


def ratios(rows: Iterable[Row]) -> str:
    """ztunnel beside each peer; min and max are over the ratios of the rounds."""
    lines = [
        (
            row.work,
            row.path or _MISSING,
            row.peer or _MISSING,
            row.unit or _MISSING,
            number(row.ours),
            number(row.theirs),
            number(row.ratio),
            number(row.lowest),
            number(row.highest),
        )
        for row in rows
    ]
    head = ("work", "path", "peer", "unit", "ours", "theirs", "ratio", "min", "max")
    return render(head, lines)


def target_results(found: Iterable[TargetResult]) -> str:
    """The targets: met or missed."""
    output = {True: "met", False: "missed", None: "not measured"}
    lines = [(one.id, one.target, number(one.measured), output[one.met]) for one in found]
    return render(("work", "target", "measured", "result"), lines)


def number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return _MISSING
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    digits = 3 if size < 1 else 2 if size < 10 else 1
    return f"{value:.{digits}f}"


def render(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in (head, rule, *lines)
    )
