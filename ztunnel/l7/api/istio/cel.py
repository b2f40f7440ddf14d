# SPDX-License-Identifier: Apache-2.0
"""Checks that Envoy accepts a CEL expression of an access log filter.

Envoy rejects a whole listener because of one malformed expression, so that only what this grammar
covers reaches it: the grammar of CEL (github.com/google/cel-spec, langdef.md) without maps,
messages, macros other than `has`, and raw or triple-quoted texts, and with the functions that
Envoy provides. Types are not checked: an expression of the wrong type matches nothing.
"""

from __future__ import annotations

import re

MAX_EXPRESSION_BYTES = 1024
_MAX_DEPTH = 32  # of parentheses and calls; bounds the recursion of the parsers
_FUNCTIONS = frozenset({"has", "size", "int", "string"})
_METHODS = frozenset({"contains", "startsWith", "endsWith", "size"})
_ATTRIBUTES = frozenset(  # envoyproxy.io, "Attributes"
    {"request", "response", "connection", "upstream", "source", "destination", "metadata"}
    | {"filter_state"}
)
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>\d+(?:\.\d+)?u?)
    | (?P<text>"(?:[^"\\\n]|\\["'\\nrt])*"|'(?:[^'\\\n]|\\["'\\nrt])*')
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator>&&|\|\||[=!<>]=|[<>!()\[\],.?:+\-*/%])
    )""",
    re.VERBOSE,
)
_RELATIONS = ("==", "!=", "<", "<=", ">", ">=", "in")
_LITERALS = ("true", "false", "null")


class CelError(ValueError):
    """The expression is not covered by the grammar above."""


def check_expression(expression: str) -> None:
    """Raise CelError if Envoy may reject the expression."""
    if len(expression.encode()) > MAX_EXPRESSION_BYTES:
        raise CelError(f"the expression is longer than {MAX_EXPRESSION_BYTES} bytes")
    parser = _Parser(_tokens(expression))
    parser.ternary(0)
    if parser.kind:
        raise CelError(f"unexpected {parser.token!r}")


def _tokens(expression: str) -> list[tuple[str, str]]:
    found, position, end = [], 0, len(expression.rstrip())
    while position < end:
        match = _TOKEN.match(expression, position)
        if match is None or match.lastgroup is None:
            raise CelError(f"unexpected {expression[position : position + 16]!r}")
        found.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return found


class _Parser:
    """Recursive descent; each method parses one level of precedence."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = [*tokens, ("", "end")]
        self._at = 0

    @property
    def kind(self) -> str:
        return self._tokens[self._at][0]

    @property
    def token(self) -> str:
        return self._tokens[self._at][1]

    def ternary(self, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise CelError("the expression is nested too deeply")
        self._binary(depth)
        if self._accept("?"):
            self._binary(depth)
            self._expect(":")
            self.ternary(depth + 1)

    def _binary(self, depth: int) -> None:
        # precedence does not matter for what is well-formed
        self._unary(depth)
        while self.token in ("&&", "||", "+", "-", "*", "/", "%", *_RELATIONS) and (
            self.kind == "operator" or self.token == "in"
        ):
            self._at += 1
            self._unary(depth)

    def _unary(self, depth: int) -> None:
        operator = self.token  # the grammar does not mix them
        while operator in ("!", "-") and self._accept(operator):
            pass
        self._primary(depth)
        while self.kind == "operator" and self.token in (".", "["):
            if self._accept("["):
                self.ternary(depth + 1)
                self._expect("]")
                continue
            self._at += 1
            self._member(depth)

    def _primary(self, depth: int) -> None:
        kind, token = self.kind, self.token
        self._at += 1
        if kind in ("number", "text") or (kind == "name" and token in _LITERALS):
            return
        if kind == "name" and token in _FUNCTIONS:
            self._expect("(")
            self._arguments(depth, selector=token == "has")
        elif kind == "name" and token in _ATTRIBUTES:
            return
        elif (kind, token) == ("operator", "("):
            self.ternary(depth + 1)
            self._expect(")")
        elif (kind, token) == ("operator", "["):
            self._list(depth)
        else:
            raise CelError(f"unexpected {token!r}")

    def _member(self, depth: int) -> None:
        kind, token = self.kind, self.token
        if kind != "name":
            raise CelError(f"unexpected {token!r}")
        self._at += 1
        if self._accept("("):
            if token not in _METHODS:
                raise CelError(f"no such function: {token}")
            if self._accept(")"):
                if token != "size":
                    raise CelError(f"{token} needs an argument")
            else:
                self._arguments(depth)

    def _arguments(self, depth: int, *, selector: bool = False) -> None:
        start = self._at
        self.ternary(depth + 1)
        if selector:  # the macro needs a field selection, for example `request.url_path`
            path = [token for _, token in self._tokens[start : self._at]]
            names = path[0::2]
            if len(path) < 3 or len(path) % 2 == 0 or set(path[1::2]) != {"."} or "(" in names:
                raise CelError("has() needs a field, for example has(response.code)")
        self._expect(")")

    def _list(self, depth: int) -> None:
        while not self._accept("]"):
            self.ternary(depth + 1)
            if not self._accept(","):
                self._expect("]")
                return

    def _accept(self, operator: str) -> bool:
        found = self.kind == "operator" and self.token == operator
        self._at += found
        return found

    def _expect(self, operator: str) -> None:
        if not self._accept(operator):
            raise CelError(f"unexpected {self.token!r}, want {operator!r}")
