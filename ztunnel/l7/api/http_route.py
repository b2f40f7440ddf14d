# SPDX-License-Identifier: Apache-2.0
"""Parses HTTPRoute (Gateway API v1.6)."""

from __future__ import annotations

import re

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api import route_fields as common
from ztunnel.l7.api.request_rules import (
    Backend,
    Cors,
    Match,
    PathChange,
    PathKind,
    Redirect,
    RequestRoute,
    Retry,
    Rewrite,
    RouteFilter,
    Rule,
    match_rank,
)
from ztunnel.l7.api.route_common import parse_route, parse_rule_backends, parse_session
from ztunnel.l7.api.route_fields import HeaderModifier
from ztunnel.l7.objects import L7Object

_METHOD = re.compile(r"[A-Z]{1,32}")
_HOSTNAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_PATH = re.compile(r"/[^\x00-\x20\x7f#?]{0,1023}")
_FORBIDDEN = ("//", "/./", "/../", "%2f", "%2F")  # Gateway API's validation of a path to match
_REDIRECTS = (301, 302, 303, 307, 308)
# Values become parts of headers, so that none may contain a line break.
_CORS = {
    "allowOrigins": re.compile(r"\*|[a-z][a-z0-9+.\-]{0,31}://[A-Za-z0-9*.:\[\]_\-]{1,253}"),
    "allowMethods": re.compile(r"\*|[A-Z]{1,32}"),
    "allowHeaders": common.TOKEN,
    "exposeHeaders": common.TOKEN,
}
_RULE = (
    "name",
    "matches",
    "filters",
    "backendRefs",
    "timeouts",
    "retry",
    "sessionPersistence",
)


def parse_http_route(obj: L7Object) -> RequestRoute:
    """Return the parsed route. Raises TranslateError if nothing of it can be used."""
    return parse_route(obj, _matches, _complete)


def _complete(rule: Fields, obj: L7Object, matches: tuple[Match, ...]) -> Rule:
    rule.allow_only(*_RULE)
    timeouts = rule.mapping("timeouts")
    timeouts.allow_only("request", "backendRequest")
    filters = tuple(_filter(each, obj.namespace) for each in rule.mappings("filters"))
    backends = parse_rule_backends(rule, obj.namespace, _filter)
    request_s = common.duration_s(timeouts, "request")
    backend_s = common.duration_s(timeouts, "backendRequest")
    if request_s and backend_s and backend_s > request_s:
        raise timeouts.error("backendRequest", "at most the timeout of the request")
    _check_filters(rule, filters, backends, matches)
    return Rule(
        where=rule.path("").rstrip("."),
        name=rule.string("name"),
        matches=matches,
        filters=filters,
        backends=backends,
        request_timeout_s=request_s,
        backend_timeout_s=backend_s,
        retry=_retry(rule.mapping("retry")) if rule.has("retry") else None,
        session=parse_session(rule),
    )


def _check_filters(
    rule: Fields,
    filters: tuple[RouteFilter, ...],
    backends: tuple[Backend, ...],
    matches: tuple[Match, ...],
) -> None:
    kinds = [(type(f), f.of_response if isinstance(f, HeaderModifier) else None) for f in filters]
    for kind, of_response in kinds:
        if kind is not common.Mirror and kinds.count((kind, of_response)) > 1:
            raise rule.error("filters", "each filter once, except RequestMirror")
    redirects = any(isinstance(f, Redirect) for f in filters)
    if redirects and (backends or any(isinstance(f, Rewrite) for f in filters)):
        raise rule.error("filters", "a redirect without backends and without a rewrite")
    changes = [f.path for f in filters if isinstance(f, Redirect | Rewrite) and f.path]
    if any(c.prefix for c in changes) and any(m.path_kind is not PathKind.PREFIX for m in matches):
        raise rule.error("filters", "ReplacePrefixMatch only where all matches have PathPrefix")


def _matches(rule: Fields) -> tuple[Match, ...]:
    return tuple(_match(each) for each in rule.mappings("matches")) or (_ranked(),)


def _match(fields: Fields) -> Match:
    fields.allow_only("path", "headers", "queryParams", "method")
    path = fields.mapping("path")
    path.allow_only("type", "value")
    kind = common.choice(path, "type", PathKind, PathKind.PREFIX)
    value = path.string("value") or "/"
    if kind is PathKind.REGEX:
        common.check_regex(path, "value")
    elif not _PATH.fullmatch(value) or any(each in value for each in _FORBIDDEN):
        raise path.error("value", "an absolute path without //, . and ..")
    elif kind is PathKind.PREFIX:
        value = value.rstrip("/") or "/"  # a trailing slash is ignored
    method = fields.string("method")
    if method and not _METHOD.fullmatch(method):
        raise fields.error("method", "a method")
    return _ranked(
        Match(
            path_kind=kind,
            path=value,
            method=method,
            headers=common.parse_values(fields, "headers", of_headers=True),
            query=common.parse_values(fields, "queryParams", of_headers=False),
        )
    )


def _ranked(match: Match | None = None) -> Match:
    m = match or Match()
    rank = match_rank(m.path_kind, m.path, m.method, len(m.headers), len(m.query))
    return Match(
        path_kind=m.path_kind,
        path=m.path,
        method=m.method,
        headers=m.headers,
        query=m.query,
        rank=rank,
    )


def _filter(fields: Fields, namespace: str) -> RouteFilter:
    """Return a filter. Raises TranslateError for a filter that is not supported."""
    kind = fields.string("type")
    if kind not in _FILTERS:
        raise fields.error("type", " or ".join(_FILTERS))
    member = kind[:1].lower() + kind[1:] if kind not in _MEMBERS else _MEMBERS[kind]
    fields.allow_only("type", member)
    if kind == "RequestHeaderModifier":
        return common.parse_modifier(fields.mapping(member), of_response=False)
    if kind == "ResponseHeaderModifier":
        return common.parse_modifier(fields.mapping(member), of_response=True)
    if kind == "RequestMirror":
        return common.parse_mirror(fields.mapping(member), namespace)
    if kind == "RequestRedirect":
        return _redirect(fields.mapping(member))
    if kind == "URLRewrite":
        return _rewrite(fields.mapping(member))
    return _cors(fields.mapping(member))


_FILTERS = (
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
    "CORS",
)
_MEMBERS = {"URLRewrite": "urlRewrite", "CORS": "cors"}


def _redirect(fields: Fields) -> Redirect:
    fields.allow_only("scheme", "hostname", "path", "port", "statusCode")
    scheme = fields.string("scheme")
    if scheme not in ("", "http", "https"):
        raise fields.error("scheme", "http or https")
    status = common.integer(fields, "statusCode", 300, 399, default=302)
    if status not in _REDIRECTS:
        raise fields.error("statusCode", ", ".join(map(str, _REDIRECTS)))
    return Redirect(
        scheme=scheme,
        hostname=_hostname(fields),
        path=_path_change(fields),
        port=fields.port("port"),
        status=status,
    )


def _rewrite(fields: Fields) -> Rewrite:
    fields.allow_only("hostname", "path")
    return Rewrite(hostname=_hostname(fields), path=_path_change(fields))


def _hostname(fields: Fields) -> str:
    value = fields.string("hostname")
    if value and not _HOSTNAME.fullmatch(value):
        raise fields.error("hostname", "a hostname")
    return value


def _path_change(fields: Fields) -> PathChange | None:
    if not fields.has("path"):
        return None
    path = fields.mapping("path")
    path.allow_only("type", "replaceFullPath", "replacePrefixMatch")
    kind = path.string("type")
    if kind not in ("ReplaceFullPath", "ReplacePrefixMatch"):
        raise path.error("type", "ReplaceFullPath or ReplacePrefixMatch")
    member = kind[0].lower() + kind[1:]
    value = path.string(member)
    prefix = kind == "ReplacePrefixMatch"
    if not (prefix and not value) and not _PATH.fullmatch(value):
        raise path.error(member, "an absolute path without query and fragment")
    return PathChange(value, prefix)


def _cors(fields: Fields) -> Cors:
    fields.allow_only(
        "allowOrigins",
        "allowCredentials",
        "allowMethods",
        "allowHeaders",
        "exposeHeaders",
        "maxAge",
    )
    for name, pattern in _CORS.items():
        if not all(pattern.fullmatch(value) for value in fields.strings(name)):
            raise fields.error(name, "values of the form that Gateway API specifies")
    return Cors(
        origins=tuple(fields.strings("allowOrigins")),
        credentials=fields.boolean("allowCredentials"),
        methods=tuple(fields.strings("allowMethods")),
        headers=tuple(fields.strings("allowHeaders")),
        expose=tuple(fields.strings("exposeHeaders")),
        max_age_s=common.integer(fields, "maxAge", 1, 2**31 - 1, default=5),
    )


def _retry(fields: Fields) -> Retry:
    fields.allow_only("codes", "attempts", "backoff")
    codes = fields.raw("codes") or []
    if not isinstance(codes, list) or not all(
        isinstance(c, int) and not isinstance(c, bool) and 400 <= c <= 599 for c in codes
    ):
        raise fields.error("codes", "status codes from 400 to 599")
    attempts = None
    if fields.has("attempts"):
        attempts = common.integer(fields, "attempts", 0, 100, default=0)
    return Retry(
        codes=tuple(codes), attempts=attempts, backoff_s=common.duration_s(fields, "backoff")
    )
