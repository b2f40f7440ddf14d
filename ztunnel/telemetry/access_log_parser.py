# SPDX-License-Identifier: Apache-2.0
"""Parses the access log lines that `access_log` writes, in both formats."""

from __future__ import annotations

import ast
import json
import re

_PAIR = re.compile(r"""([A-Za-z_][\w.]*)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)""")


class LineError(ValueError):
    """A text is not an access log line."""


def parse(line: str) -> dict[str, str]:
    """The fields of a line, all as strings. Raises LineError."""
    text = line.strip()
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise LineError(f"invalid JSON: {text[:80]}") from error
        return {str(key): str(value) for key, value in found.items()}
    fields = {match[1]: _unquoted(match[2]) for match in _PAIR.finditer(text)}
    if not fields:
        raise LineError(f"not a log line: {text[:80]!r}")
    return fields


def _unquoted(text: str) -> str:
    if text[0] not in "'\"":
        return text
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text
