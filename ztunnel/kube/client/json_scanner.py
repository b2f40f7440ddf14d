# SPDX-License-Identifier: Apache-2.0
"""Splits JSON text into its elements without decoding them. Pure; does not recurse.

A decoder recurses into every value, also into those that it skips, so that one deeply nested value
makes the whole text undecodable. With the spans of the elements, a caller decodes each on its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

Span = tuple[int, int]  # offsets of the first byte and after the last one

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb"|[\[\]{},]", re.DOTALL)
_KEY = re.compile(rb"\s*+(" + _STRING + rb")\s*+:\s*+", re.DOTALL)
_BLANK = re.compile(rb"\s*+")
_OPEN, _CLOSE, _COMMA = frozenset(b"[{"), frozenset(b"]}"), ord(",")


def elements(text: bytes, span: Span) -> Iterator[Span]:
    """The elements of an array, or the `"key": value` pairs of an object.

    Raises msgspec.DecodeError if the text is neither, or not closed.
    """
    at = _BLANK.match(text, *span).end()  # type: ignore[union-attr]  # matches the empty string
    if at >= span[1] or text[at] not in _OPEN:
        raise msgspec.DecodeError(f"not an object or array: {text[at : min(at + 40, span[1])]!r}")
    depth = 0
    begin = at + 1
    for token in _TOKEN.finditer(text, at, span[1]):
        end, first = token.start(), text[token.start()]
        if first in _OPEN:
            depth += 1
        elif first in _CLOSE or (first == _COMMA and depth == 1):
            depth -= first != _COMMA
            if depth == 0 or first == _COMMA:
                if _BLANK.match(text, begin, end).end() < end:  # type: ignore[union-attr]
                    yield begin, end
                begin = token.end()
            if depth == 0:
                return
    raise msgspec.DecodeError("the text ends inside an object or array")


def members(text: bytes, span: Span) -> dict[str, Span]:
    """The values of an object by key. Raises msgspec.DecodeError if it is not an object."""
    found = {}
    for begin, end in elements(text, span):
        key = _KEY.match(text, begin, end)
        if key is None:
            raise msgspec.DecodeError(f"not an object: {text[begin : min(begin + 40, end)]!r}")
        found[msgspec.json.decode(key[1], type=str)] = key.end(), end
    return found
