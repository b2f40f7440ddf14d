# SPDX-License-Identifier: Apache-2.0
"""HTTPMatchRequest as Envoy's RouteMatch."""

from __future__ import annotations

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.istio.values import header_name, string_match
from ztunnel.l7.config import Json
from ztunnel.l7.names import PeerState
from ztunnel.l7.traffic.virtual_service.selection import is_for_mesh

ANY: Json = {"prefix": "/"}
_FIELDS = (
    *("name", "uri", "scheme", "method", "authority", "headers", "withoutHeaders", "queryParams"),
    *("port", "sourceLabels", "sourceNamespace", "gateways", "ignoreUriCase", "statPrefix"),
)
_PSEUDO_HEADERS = (("scheme", ":scheme"), ("method", ":method"), ("authority", ":authority"))


def route_match(match: Fields, port: int) -> Json | None:
    """Return the match, None if it never applies to this port. Raises TranslateError."""
    match.allow_only(*_FIELDS)
    if match.mapping("sourceLabels").names():
        raise match.error("sourceLabels", "none: waypoints do not know the client's labels")
    result = _path(match)
    headers = [
        {"name": header, "string_match": string_match(match.mapping(name))}
        for name, header in _PSEUDO_HEADERS
        if match.has(name)
    ]
    headers += _headers(match.mapping("headers"), invert=False)
    headers += _headers(match.mapping("withoutHeaders"), invert=True)
    if headers:
        result["headers"] = headers
    query = match.mapping("queryParams")
    if query.names():
        result["query_parameters"] = [_parameter(query, name) for name in query.names()]
    if namespace := match.string("sourceNamespace"):
        key = PeerState.NAMESPACE.value
        result["filter_state"] = [{"key": key, "string_match": {"exact": namespace}}]
    number = match.port("port")
    return result if number in (None, port) and is_for_mesh(match) else None


def _path(match: Fields) -> Json:
    if not match.has("uri"):
        return dict(ANY)
    ignore_case = match.boolean("ignoreUriCase")
    uri = match.mapping("uri")
    kind, text = next(iter(string_match(uri).items()))
    if kind == "safe_regex":
        return {"safe_regex": text}
    if not text.startswith("/"):
        raise uri.error(kind, "a path that starts with /")
    found = {"path" if kind == "exact" else "prefix": text}
    return found | ({"case_sensitive": False} if ignore_case else {})


def _headers(headers: Fields, *, invert: bool) -> list[Json]:
    found = []
    for name in headers.names():
        if not name:
            raise headers.invalid("has an empty name")
        matcher: Json = {"name": header_name(Fields({"name": name}, headers.path("")), "name")}
        value = headers.mapping(name)
        if value.names():
            matcher["string_match"] = string_match(value)
        else:
            matcher["present_match"] = True
        found.append(matcher | ({"invert_match": True} if invert else {}))
    return found


def _parameter(query: Fields, name: str) -> Json:
    if not name:
        raise query.invalid("has an empty name")
    value = query.mapping(name)
    if not value.names():
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": string_match(value)}
