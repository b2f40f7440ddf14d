# SPDX-License-Identifier: Apache-2.0
"""Predicts what a gateway does with a request, by the rules that Envoy gets. Pure.

A property test compares the prediction with Envoy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from ztunnel.l7.api.regex import regex_matches
from ztunnel.l7.api.request_rules import (
    Cors,
    Match,
    PathChange,
    PathKind,
    Redirect,
    RequestRoute,
    Rewrite,
)
from ztunnel.l7.api.route_fields import HeaderModifier, Mirror, ValueKind, ValueMatch
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.routing.attachment import PRODUCER, RouteIndex, port_routes
from ztunnel.l7.routing.precedence import Entry, in_order
from ztunnel.l7.routing.references import resolve
from ztunnel.l7.security.paths import normalize_path
from ztunnel.mesh.model import Service, ServicePort

BAD_REQUEST, NOT_FOUND = 400, 404
NO_BACKEND = {"HTTPRoute": 500, "GRPCRoute": 503}  # 503: Envoy makes it UNAVAILABLE


class RouteRequest(NamedTuple):
    """A request to a service port. Header names are in lower case, with `host`.

    `namespace` is the client's, empty for a client outside of the mesh.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    namespace: str


class Receiver(NamedTuple):
    """What gets a request: a port of a service, or of an ingress gateway (`service` is None)."""

    service: Service | None
    port: int
    scheme: str = "http"


class BackendShare(msgspec.Struct, frozen=True):
    """A backend and its share of the requests in percent; `error`: they get an error instead."""

    backend: str
    percent: float
    error: str = ""


class RouteDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to a request.

    `status`: the waypoint answers itself, with this status and `location`. Otherwise one of
    `backends` gets the request with `path` and `host`. `route` is empty if no route applies.
    """

    route: str = ""
    rule: int | None = None
    rule_name: str = ""
    reason: str
    status: int | None = None
    location: str = ""
    backends: tuple[BackendShare, ...] = ()
    path: str = ""
    host: str = ""
    filters: tuple[str, ...] = ()


def evaluate(
    inputs: Inputs, service: Service, port: ServicePort, request: RouteRequest, index: RouteIndex
) -> RouteDecision:
    """Return the decision on a request to a port that is served as HTTP."""
    path = normalize_path(request.path)
    if path is None:
        return RouteDecision(reason="the path is invalid", status=BAD_REQUEST)
    request = request._replace(path=path)
    groups = port_routes(index.of_service(service), service, port).groups
    group = request.namespace if request.namespace in groups else PRODUCER
    routes = [r for r in groups.get(group, ()) if isinstance(r, RequestRoute)]
    if not routes:
        own = BackendShare(f"{service.key}:{port.port}", 100.0)
        return RouteDecision(
            reason=f"no route applies to port {port.port}",
            backends=(own,),
            path=path,
            host=request.headers.get("host", ""),
        )
    return decide(inputs, in_order(routes), request, Receiver(service, port.port))


def decide(
    inputs: Inputs, entries: Sequence[Entry], request: RouteRequest, receiver: Receiver
) -> RouteDecision:
    """Return the decision by the first entry that matches; the path is normalized."""
    for entry in entries:
        if matches(entry.match, request):
            return _decision(inputs, receiver, request, entry)
    names = ", ".join(dict.fromkeys(_name(entry.route) for entry in entries))
    return RouteDecision(reason=f"no rule matches, of {names or 'no route'}", status=NOT_FOUND)


def matches(match: Match, request: RouteRequest) -> bool:
    """Return whether a request meets all conditions of a match; the path is normalized."""
    path, _, query = request.path.partition("?")
    parameters: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        parameters.setdefault(name, value)
    return (
        _matches_path(match, path)
        and match.method in ("", request.method)
        and all(_matches_value(each, request.headers) for each in match.headers)
        and all(_matches_value(each, parameters) for each in match.query)
    )


def describe(match: Match) -> str:
    """Return the conditions of a match in one line."""
    parts = [f"path {match.path_kind} {match.path}"]
    if match.method:
        parts.append(f"method {match.method}")
    parts += [f"header {v.name} {v.kind} {v.value}" for v in match.headers]
    parts += [f"query {v.name} {v.kind} {v.value}" for v in match.query]
    return ", ".join(parts)


def _matches_path(match: Match, path: str) -> bool:
    if match.path_kind is PathKind.EXACT:
        return path == match.path
    if match.path_kind is PathKind.REGEX:
        return regex_matches(match.path, path)
    return match.path in ("/", path) or path.startswith(f"{match.path}/")


def _matches_value(value: ValueMatch, found: Mapping[str, str]) -> bool:
    text = found.get(value.name)
    if text is None:
        return False
    if value.kind is ValueKind.REGEX:
        return regex_matches(value.value, text)
    return text == value.value


def _decision(
    inputs: Inputs, receiver: Receiver, request: RouteRequest, entry: Entry
) -> RouteDecision:
    rule, kind = entry.rule, entry.route.obj.kind
    base = RouteDecision(
        route=_name(entry.route),
        rule=entry.number,
        rule_name=rule.name,
        reason=f"rule {entry.number} matches: {describe(entry.match)}",
        filters=tuple(_describe_filter(f) for f in rule.filters),
    )
    if rule.error:
        return msgspec.structs.replace(base, status=NO_BACKEND[kind], reason=rule.error)
    redirect = next((f for f in rule.filters if isinstance(f, Redirect)), None)
    if redirect is not None:
        location = _location(redirect, entry.match, request, receiver)
        return msgspec.structs.replace(base, status=redirect.status, location=location)
    shares = _shares(inputs, receiver.service, entry)
    if not shares:
        reason = "the rule has no backend with a weight"
        return msgspec.structs.replace(base, status=NO_BACKEND[kind], reason=reason)
    path, host = _rewritten(entry, request)
    return msgspec.structs.replace(base, backends=shares, path=path, host=host)


def _shares(inputs: Inputs, service: Service | None, entry: Entry) -> tuple[BackendShare, ...]:
    weighted = [b for b in entry.rule.backends if b.ref.weight]
    total = sum(b.ref.weight for b in weighted)
    found = []
    for backend in weighted:
        result = resolve(inputs, entry.route.obj, service, backend.ref)
        name = f"{backend.ref.namespace}/{backend.ref.name}:{backend.ref.port}"
        error = backend.error or result.message
        found.append(BackendShare(name, 100.0 * backend.ref.weight / total, error))
    return tuple(found)


def _rewritten(entry: Entry, request: RouteRequest) -> tuple[str, str]:
    path, host = request.path, request.headers.get("host", "")
    for each in entry.rule.filters:
        if isinstance(each, HeaderModifier) and not each.of_response:
            host = dict(each.set).get("host", host)
    for each in entry.rule.filters:
        if isinstance(each, Rewrite):
            host = each.hostname or host
            path = _changed(each.path, entry.match, path) if each.path else path
    return path, host


def _changed(change: PathChange, match: Match, target: str) -> str:
    """Apply a change of the path to a target; the query stays."""
    path, question, query = target.partition("?")
    if not change.prefix:
        return change.value + question + query
    value = change.value.rstrip("/")
    if match.path == "/":
        path = f"{value}/{path[1:]}"
    elif value:
        path = value + path[len(match.path) :]
    else:
        path = "/" + path[len(match.path) :].lstrip("/")
    return path + question + query


def _location(redirect: Redirect, match: Match, request: RouteRequest, receiver: Receiver) -> str:
    scheme = redirect.scheme or receiver.scheme
    host = redirect.hostname or re.sub(r":[0-9]+$", "", request.headers.get("host", ""))
    wanted = redirect.port
    if wanted is None:
        wanted = {"http": 80, "https": 443}[redirect.scheme] if redirect.scheme else receiver.port
    suffix = "" if wanted == {"http": 80, "https": 443}[scheme] else f":{wanted}"
    path = _changed(redirect.path, match, request.path) if redirect.path else request.path
    return f"{scheme}://{host}{suffix}{path}"


def _describe_filter(each: HeaderModifier | Mirror | Redirect | Rewrite | Cors) -> str:
    if isinstance(each, Mirror):
        ref = each.backend
        percent = 100 * each.numerator / each.denominator
        return f"mirrors {percent:g}% to {ref.namespace}/{ref.name}:{ref.port}"
    if isinstance(each, HeaderModifier):
        side = "response" if each.of_response else "request"
        changes = [
            *(f"set {name}" for name, _ in each.set),
            *(f"add {name}" for name, _ in each.add),
            *(f"remove {name}" for name in each.remove),
        ]
        return f"{side} headers: {', '.join(changes)}"
    if isinstance(each, Cors):
        return f"CORS for {', '.join(each.origins)}"
    return "redirects" if isinstance(each, Redirect) else "rewrites the URL"


def _name(route: RequestRoute) -> str:
    obj = route.obj
    return f"{obj.kind} {obj.namespace}/{obj.name}"
