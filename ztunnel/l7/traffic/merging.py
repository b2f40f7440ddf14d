# SPDX-License-Identifier: Apache-2.0
"""Merges fields of a cluster: objects member by member, other values replaced."""

from __future__ import annotations

from ztunnel.l7.config import Json

# Members of a oneof of HttpProtocolOptions: one that is set replaces the others.
_VERSIONS = ("explicit_http_config", "use_downstream_protocol_config", "auto_config")


def merge_fields(base: Json, override: Json) -> Json:
    """Return the merged fields; neither argument changes."""
    merged = dict(base)
    if any(name in override for name in _VERSIONS):
        for name in _VERSIONS:
            merged.pop(name, None)
    for name, value in override.items():
        old = merged.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[name] = merge_fields(old, value) if both and isinstance(old, dict) else value
    return merged
