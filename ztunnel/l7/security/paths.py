# SPDX-License-Identifier: Apache-2.0
"""Normalization of request paths as Envoy does it with Istio's default, `BASE`. Pure.

    %41          A, for letters, digits and -._~ only
    \\            /
    . and ..     removed with their segments, also if escaped, or with parameters: `..;x`
    //           stays, as does %2F
    space " < > ^ ` { | }  escaped

The query is left alone. Source: Envoy's `normalize_path`, RFC 3986, section 6; a property test
compares it with Envoy.
"""

from __future__ import annotations

import re

_UNRESERVED = re.compile(r"%(2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aA]|5[fF]|6[1-9a-fA-F]|7[0-9aAeE])")
_DOT_PARAMETERS = re.compile(r"(?<=/)(\.\.?);[^/]*")
_ESCAPED = re.compile(r'[ "<>^`{|}]')
_INVALID = re.compile(r"[^\x21-\x7e]|#")  # Envoy answers 400


def normalize_path(target: str) -> str | None:
    """Return the normalized path and the query of a request; None if Envoy rejects it."""
    path, question, query = target.partition("?")
    if not path.startswith("/") or _INVALID.search(target) or "%00" in path:
        return None
    path = _DOT_PARAMETERS.sub(r"\1", path)
    path = _UNRESERVED.sub(lambda match: chr(int(match[1], 16)), path.replace("\\", "/"))
    path = _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", path)
    return _without_dots(path) + question + query


def without_query(target: str) -> str:
    """Return the path that policies match."""
    return target.partition("?")[0]


def _without_dots(path: str) -> str:
    segments = path.split("/")[1:]
    found: list[str] = []
    for number, segment in enumerate(segments):
        is_last = number == len(segments) - 1
        if segment == "..":
            if found:
                found.pop()
        elif segment != ".":
            found.append(segment)
            continue
        if is_last:
            found.append("")
    return "/" + "/".join(found)
