# SPDX-License-Identifier: Apache-2.0
"""Matches of rules as Envoy's RouteMatch."""

from __future__ import annotations

from ztunnel.l7.api.request_rules import Match, PathKind
from ztunnel.l7.api.route_fields import ValueKind, ValueMatch
from ztunnel.l7.config import Json
from ztunnel.l7.names import PeerState


def route_match(match: Match, namespace: str = "") -> Json:
    """Return the RouteMatch; `namespace` limits it to clients of a namespace."""
    result = _path(match)
    headers = [_header(each) for each in match.headers]
    if match.method:
        headers.append({"name": ":method", "string_match": {"exact": match.method}})
    if headers:
        result["headers"] = headers
    if match.query:
        result["query_parameters"] = [
            {"name": each.name, "string_match": _string(each)} for each in match.query
        ]
    if namespace:
        result["filter_state"] = [from_namespace(namespace)]
    return result


def from_namespace(namespace: str) -> Json:
    """Return a FilterStateMatcher for clients of a namespace, as the tunnel proves it."""
    return {"key": PeerState.NAMESPACE.value, "string_match": {"exact": namespace}}


def _path(match: Match) -> Json:
    if match.path_kind is PathKind.EXACT:
        return {"path": match.path}
    if match.path_kind is PathKind.REGEX:
        return {"safe_regex": {"regex": match.path}}
    return {"prefix": "/"} if match.path == "/" else {"path_separated_prefix": match.path}


def _header(value: ValueMatch) -> Json:
    name = ":authority" if value.name == "host" else value.name
    return {"name": name, "string_match": _string(value)}


def _string(value: ValueMatch) -> Json:
    if value.kind is ValueKind.REGEX:
        return {"safe_regex": {"regex": value.value}}
    return {"exact": value.value}
