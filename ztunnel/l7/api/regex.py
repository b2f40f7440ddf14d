# SPDX-License-Identifier: Apache-2.0
"""Regular expressions, checked by RE2 itself: Envoy rejects a whole response for an invalid one."""

from __future__ import annotations

from functools import lru_cache

import re2

# Instructions of the compiled program. The bootstrap sets Envoy's limit
# `re2.max_program_size.error_level` to Istio's value; a tenant's expression gets a part of it.
MAX_PROGRAM_SIZE = 32768
_MAX_CHARACTERS = 4096

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False  # RE2 would write to standard error


@lru_cache(maxsize=4096)
def regex_error(pattern: str) -> str:
    """Return why RE2 or Envoy rejects an expression, empty if both accept it."""
    if len(pattern) > _MAX_CHARACTERS:
        return f"the expression has {len(pattern)} characters, the limit is {_MAX_CHARACTERS}"
    try:
        size = re2.compile(pattern, _OPTIONS).programsize
    except re2.error as error:
        (reason,) = error.args or (b"",)
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        return f"not a regular expression of RE2: {text}"
    if size > MAX_PROGRAM_SIZE:
        return f"the expression compiles to {size} instructions, the limit is {MAX_PROGRAM_SIZE}"
    return ""


@lru_cache(maxsize=4096)
def regex_matches(pattern: str, text: str) -> bool:
    """Return whether the whole text matches a valid expression."""
    return re2.compile(pattern, _OPTIONS).fullmatch(text) is not None


@lru_cache(maxsize=4096)
def regex_groups(pattern: str) -> int:
    """Return the number of groups of a valid expression."""
    return int(re2.compile(pattern, _OPTIONS).groups)
