# SPDX-License-Identifier: Apache-2.0
"""Small helpers that write Markdown and read comments out of sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; `|` and line breaks inside cells are escaped."""
    lines = [_row(head), _row(["---"] * len(head))]
    return "\n".join([*lines, *(_row(row) for row in rows)])


def code(text: str) -> str:
    """Inline code; empty for empty text."""
    return f"`{text}`" if text else ""


def sentence(text: str) -> str:
    """The text as one line that starts with a capital letter and ends with a full stop."""
    flat = " ".join(text.split())
    if not flat:
        return ""
    first = flat if re.match(r"[a-z]+_|`", flat) else flat[0].upper() + flat[1:]
    return first if first.endswith((".", "!", "?", ":")) else f"{first}."


def enum_members(path: str, name: str) -> list[tuple[str, str, str]]:
    """(member, value, trailing comment) of an enum class, in the order of the source."""
    source = (ROOT / path).read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return [
                (target.id, str(statement.value.value), trailing_comment(lines, statement))
                for statement in node.body
                if isinstance(statement, ast.Assign)
                and isinstance(statement.value, ast.Constant)
                and isinstance(target := statement.targets[0], ast.Name)
            ]
    raise LookupError(f"{path}: no class {name}")


def trailing_comment(lines: Sequence[str], statement: ast.stmt) -> str:
    """The comment behind a statement, without `#`; else that on the line above it."""
    last = lines[(statement.end_lineno or statement.lineno) - 1][statement.end_col_offset :]
    if "#" in last:
        return last.split("#", 1)[1].strip()
    above: list[str] = []
    number = statement.lineno - 2
    while number >= 0 and lines[number].lstrip().startswith("#"):
        above.insert(0, lines[number].lstrip().lstrip("#").strip())
        number -= 1
    return " ".join(above)


def sources(*packages: str) -> list[Path]:
    """Python files below the packages, sorted."""
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in map(_flat, cells))} |"


def _flat(cell: str) -> str:
    return " ".join(cell.split())
