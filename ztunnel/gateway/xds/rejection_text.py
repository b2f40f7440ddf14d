# SPDX-License-Identifier: Apache-2.0
"""Shortens Envoy's message about a configuration that it rejects. Pure.

Before the reason, Envoy may print the resource, which can be larger than what an annotation or a
condition has room for, and after it a chain of causes from the resource to the field:

    goo.gle/debugonly  name: "a" ... : Proto constraint validation failed
    (ClusterValidationError.ConnectTimeout: value must be greater than 0s)
"""

from __future__ import annotations

import re
from typing import Final

MAX_MESSAGE_CHARS: Final = 4096
_MAX_INPUT_CHARS: Final = 1 << 20
_CONSTRAINT: Final = "Proto constraint validation failed ("
_STEP: Final = re.compile(
    r"\w+ValidationError\.([\w.\[\]\"/-]+): "
)  # envoyproxy/protoc-gen-validate
_CAUSED_BY: Final = " | caused by "
_EMBEDDED: Final = "embedded message failed validation"
_DUMP: Final = re.compile(r"goo\.gle/debug\w+\s+")  # protobuf's mark of a text that is not stable


def shorten(message: str) -> str:
    """The reason, in at most MAX_MESSAGE_CHARS characters."""
    text = message[-_MAX_INPUT_CHARS:]
    before, found, constraint = text.rpartition(_CONSTRAINT)
    if found:
        prefix = before.partition("goo.gle/debug")[0] if "goo.gle/debug" in before else ""
        text = f"{prefix}{_field_and_reason(constraint)}"
    return " ".join(_DUMP.sub("", text).split())[:MAX_MESSAGE_CHARS]


def _field_and_reason(causes: str) -> str:
    """`VirtualHosts[0].Routes[0].Match: value is required` of a chain of causes."""
    path: list[str] = []
    reason = causes.strip().removesuffix(")")
    for cause in reason.split(_CAUSED_BY):
        step = _STEP.match(cause)
        if step is None:
            return reason  # of another form
        path.append(step[1])
        rest = cause[step.end() :]
        if rest != _EMBEDDED:
            return f"{'.'.join(path)}: {rest}"
    return reason
