# SPDX-License-Identifier: Apache-2.0
"""Reference of the limits, from `ZT_MAX_*` in bpf/ and `MAX_*` constants of the packages."""

from __future__ import annotations

import ast
import re

from scripts.docgen.markdown import ROOT, code, sentence, sources, table, trailing_comment

_DEFINE = re.compile(r"^#define (ZT_MAX_\w+|ZT_EVENTS?_BYTES)\s+(.+?)\s*(?:/\*(.*?)\*/)?$", re.M)


def bpf() -> str:
    """Sizes of the maps."""
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "bpf").rglob("*.h"))
    )
    rows = (
        (code(n), _number(value), sentence(words or ""))
        for n, value, words in _DEFINE.findall(text)
    )
    return table(("constant", "value", "meaning"), sorted(rows))


def _number(text: str) -> str:
    return f"{int(text):,}" if text.isdigit() else code(text)


def python() -> str:
    """Module-level constants named MAX_* of the data plane, the agent and the controller."""
    rows = []
    for path in sources("ztunnel"):
        module = str(path.relative_to(ROOT)).removesuffix(".py").replace("/", ".")
        if module.startswith("ztunnel.lab"):
            continue
        source = path.read_text(encoding="utf-8")
        for statement in ast.parse(source).body:
            if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
                continue
            target = statement.targets[0]
            if isinstance(target, ast.Name) and target.id.lstrip("_").startswith("MAX_"):
                value = _value(statement.value)
                comment = trailing_comment(source.splitlines(), statement)
                rows.append((code(module), code(target.id.lstrip("_")), value, sentence(comment)))
    return table(("module", "constant", "value", "meaning"), sorted(rows))


def _value(expression: ast.expr) -> str:
    """A number if the expression consists of numbers only, else its source."""
    names = any(isinstance(node, ast.Name) for node in ast.walk(expression))
    if names or not isinstance(expression, (ast.Constant, ast.BinOp, ast.UnaryOp)):
        return code(ast.unparse(expression))
    value = eval(compile(ast.Expression(expression), "<constant>", "eval"), {"__builtins__": {}})
    return f"{value:,}" if isinstance(value, int | float) else code(repr(value))
