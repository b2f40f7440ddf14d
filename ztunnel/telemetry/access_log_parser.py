# SPDX-License-Identifier: Apache-2.0
"""Access lines read back: of both forms that `telemetry.access` writes."""

from __future__ import annotations

import ast
import json
import re

_PAIR = re.compile(r"""([A-Za-z_][\w.]*)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)""")


class LineError(ValueError):
    """A text that is no access line."""


def parse(line: str) -> dict[str, str]:
    """The fields of a line, all as texts. Raises LineError."""
    text = line.strip()
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise LineError(f"no JSON: {text[:80]}") from error
        return {str(key): str(value) for key, value in found.items()}
    fields = {match[1]: _unquoted(match[2]) for match in _PAIR.finditer(text)}
    if not fields:
        raise LineError(f"no line of the log: {text[:80]!r}")
    return fields


def _unquoted(text: str) -> str:
    if text[0] not in "'\"":
        return text
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text
