# SPDX-License-Identifier: Apache-2.0
"""Filters of rules as fields of Envoy's routes."""

from __future__ import annotations

import re

from ztunnel.l7.api.request_rules import Cors, Match, PathChange, Redirect, Rewrite, Session
from ztunnel.l7.api.route_fields import HeaderModifier
from ztunnel.l7.config import Json
from ztunnel.l7.routing.envoy.extensions import typed

_RESPONSE_CODES = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
_WHOLE_PATH = {"regex": "^.*$"}


def header_fields(modifier: HeaderModifier) -> Json:
    """Return the fields that change headers, of a route or of a weighted cluster."""
    side = "response" if modifier.of_response else "request"
    added = [
        *(_header(n, v, "OVERWRITE_IF_EXISTS_OR_ADD") for n, v in modifier.set if n != "host"),
        *(_header(n, v, "APPEND_IF_EXISTS_OR_ADD") for n, v in modifier.add),
    ]
    fields: Json = {}
    if added:
        fields[f"{side}_headers_to_add"] = added
    if modifier.remove:
        fields[f"{side}_headers_to_remove"] = list(modifier.remove)
    return fields


def host_rewrite(modifier: HeaderModifier) -> Json:
    """Return the field that sets `host`, which Envoy does not treat as a header."""
    host = dict(modifier.set).get("host")
    return {"host_rewrite_literal": host} if host else {}


def rewrite_fields(rewrite: Rewrite, match: Match) -> Json:
    """Return the fields of a RouteAction that rewrite the host and the path."""
    fields: Json = {"host_rewrite_literal": rewrite.hostname} if rewrite.hostname else {}
    change = rewrite.path
    if change is None:
        return fields
    if not change.prefix:
        rewritten = {"pattern": _WHOLE_PATH, "substitution": _literal(change.value)}
        return {**fields, "regex_rewrite": rewritten}
    return {**fields, **_prefix_fields(change, match)}


def redirect_action(redirect: Redirect, match: Match, port: int, scheme: str = "http") -> Json:
    """Return a RedirectAction for requests with this scheme to a port."""
    action: Json = {"response_code": _RESPONSE_CODES[redirect.status]}
    if redirect.scheme:
        action["scheme_redirect"] = redirect.scheme
    if redirect.hostname:
        action["host_redirect"] = redirect.hostname
    target = _redirect_port(redirect, port, scheme)
    if target is not None:
        action["port_redirect"] = target
    if redirect.path is None:
        return action
    if redirect.path.prefix:
        return {**action, **_prefix_fields(redirect.path, match)}
    return {**action, "path_redirect": redirect.path.value}


def cors_policy(cors: Cors) -> Json:
    """Return the configuration of the CORS filter for a route."""
    policy: Json = {
        "@type": f"{_FILTERS}.cors.v3.CorsPolicy",
        "allow_origin_string_match": [_origin(each) for each in cors.origins],
        "max_age": str(cors.max_age_s),
        "allow_credentials": cors.credentials,
        "forward_not_matching_preflights": False,
    }
    for name, values in (
        ("allow_methods", cors.methods),
        ("allow_headers", cors.headers),
        ("expose_headers", cors.expose),
    ):
        if values:
            policy[name] = ", ".join(values)
    return policy


def session_policy(session: Session) -> Json:
    """Return the configuration of the session filter for a route."""
    if session.header:
        name, kind = "header", "header.v3.HeaderBasedSessionState"
        state: Json = {"name": session.name}
    else:
        name, kind = "cookie", "cookie.v3.CookieBasedSessionState"
        ttl = {"ttl": f"{session.ttl_s}s"} if session.ttl_s else {}
        state = {"cookie": {"name": session.name, "path": "/", **ttl}}
    extension = typed(
        f"envoy.http.stateful_session.{name}", f"http.stateful_session.{kind}", **state
    )
    return {
        "@type": f"{_FILTERS}.stateful_session.v3.StatefulSessionPerRoute",
        "stateful_session": {"session_state": extension},
    }


def _header(name: str, value: str, action: str) -> Json:
    return {
        "header": {"key": name, "value": value.replace("%", "%%")},  # no command operators
        "append_action": action,
        "keep_empty_value": True,
    }


def _prefix_fields(change: PathChange, match: Match) -> Json:
    """Replace the matched prefix, by whole segments (Gateway API, HTTPPathModifier)."""
    value = change.value.rstrip("/")
    if match.path == "/":
        return {"prefix_rewrite": f"{value}/"}
    if value:
        return {"prefix_rewrite": value}
    pattern = {"regex": f"^{re.escape(match.path)}/*"}
    return {"regex_rewrite": {"pattern": pattern, "substitution": "/"}}


def _redirect_port(redirect: Redirect, port: int, scheme: str) -> int | None:
    """The port of the Location header; None if Envoy derives the right one, or none is needed."""
    if redirect.port is None and not redirect.scheme:
        wanted = port if redirect.hostname else None  # without a hostname, Envoy keeps host:port
        return None if wanted == _DEFAULT_PORTS[scheme] else wanted
    scheme_port = _DEFAULT_PORTS.get(redirect.scheme or scheme)
    wanted = redirect.port if redirect.port is not None else scheme_port
    request_has_no_port = port in _DEFAULT_PORTS.values() or bool(redirect.hostname)
    return None if wanted == scheme_port and request_has_no_port else wanted


def _origin(origin: str) -> Json:
    if "*" not in origin:
        return {"exact": origin}
    pattern = ".*".join(re.escape(part) for part in origin.split("*"))
    return {"safe_regex": {"regex": pattern}}


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")  # \1 would refer to a group
