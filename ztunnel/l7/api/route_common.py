# SPDX-License-Identifier: Apache-2.0
"""What the parsers of HTTPRoute and GRPCRoute have in common.

An invalid rule does not affect the other rules. Requests that it matches get a 500 response; if
its matches are invalid, that is every request which no other rule matches.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.request_rules import (
    ANY_REQUEST,
    Backend,
    Match,
    RequestRoute,
    RouteFilter,
    Rule,
    Session,
)
from ztunnel.l7.api.route_fields import (
    MAX_BACKENDS,
    MAX_RULES,
    HeaderModifier,
    duration_s,
    parse_backend,
    parse_parents,
)
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of

Matches = Callable[[Fields], tuple[Match, ...]]
Complete = Callable[[Fields, L7Object, tuple[Match, ...]], Rule]

_COOKIE = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,128}")
_DEFAULT_SESSION = "ztunnel-session"
_HOSTNAME = re.compile(r"(?:\*\.)?[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_GATEWAYS = ("Gateway", "ListenerSet")
MAX_HOSTNAMES = 64  # of a route; Gateway API allows 16
_SPEC = ("parentRefs", "hostnames", "rules")


def parse_route(obj: L7Object, matches: Matches, complete: Complete) -> RequestRoute:
    """Parse a route rule by rule. Raises TranslateError if its parents are invalid."""
    spec = Fields(obj.spec, "spec.")
    parents = parse_parents(obj)
    problems = [ignored_field(obj, name) for name in sorted(obj.spec) if name not in _SPEC]
    hostnames = tuple(spec.strings("hostnames"))
    if len(hostnames) > MAX_HOSTNAMES:
        raise spec.error("hostnames", f"at most {MAX_HOSTNAMES}")
    if not all(_HOSTNAME.fullmatch(each) for each in hostnames):
        raise spec.error("hostnames", "hostnames, or *. and a hostname")
    if hostnames and any(p.kind not in _GATEWAYS for p in parents):
        problems.append(_hostnames(obj))
    raw = list(spec.mappings("rules"))
    if len(raw) > MAX_RULES:
        raise spec.error("rules", f"at most {MAX_RULES} rules")
    rules = [_rule(fields, obj, matches, complete) for fields in raw]
    problems += [route_problem(obj, r.where, r.error, "UnsupportedValue") for r in rules if r.error]
    for rule in rules:
        problems += [
            route_problem(obj, b.ref.where, b.error, "UnsupportedValue")
            for b in rule.backends
            if b.error
        ]
        problems += _session_problems(obj, rule)
    return RequestRoute(
        obj=obj,
        parents=parents,
        rules=tuple(rules),
        hostnames=hostnames,
        problems=tuple(problems),
    )


def route_problem(obj: L7Object, field: str, message: str, reason: str) -> Problem:
    """An error of a route."""
    return problem_of(
        obj,
        field=field,
        message=message,
        severity=Severity.ERROR,
        reason=reason,
    )


def parse_rule_backends(
    rule: Fields, namespace: str, parse_filter: Callable[[Fields, str], RouteFilter]
) -> tuple[Backend, ...]:
    """Return the backends of a rule. Raises TranslateError."""
    found = [_backend(each, namespace, parse_filter) for each in rule.mappings("backendRefs")]
    if len(found) > MAX_BACKENDS:
        raise rule.error("backendRefs", f"at most {MAX_BACKENDS} backends")
    return tuple(found)


def _backend(
    fields: Fields, namespace: str, parse_filter: Callable[[Fields, str], RouteFilter]
) -> Backend:
    """Return a backend; filters that cannot be honoured are its `error`."""
    ref = parse_backend(fields, namespace, extra=("filters",))
    try:
        filters = [parse_filter(each, namespace) for each in fields.mappings("filters")]
        if not all(isinstance(each, HeaderModifier) for each in filters):
            raise fields.error("filters", "RequestHeaderModifier or ResponseHeaderModifier")
    except TranslateError as error:
        return Backend(ref, (), str(error))
    return Backend(ref, tuple(f for f in filters if isinstance(f, HeaderModifier)))


def parse_session(rule: Fields) -> Session | None:
    """Return the session persistence of a rule, None if it has none. Raises TranslateError."""
    if not rule.has("sessionPersistence"):
        return None
    fields = rule.mapping("sessionPersistence")
    fields.allow_only("sessionName", "absoluteTimeout", "type", "cookieConfig", "idleTimeout")
    if fields.has("idleTimeout"):
        raise fields.error("idleTimeout", "no idle timeout: Envoy has none for sessions")
    name = fields.string("sessionName") or _DEFAULT_SESSION
    if not _COOKIE.fullmatch(name):
        raise fields.error("sessionName", "a token of RFC 9110")
    kind = fields.string("type") or "Cookie"
    if kind not in ("Cookie", "Header"):
        raise fields.error("type", "Cookie or Header")
    cookie = fields.mapping("cookieConfig")
    cookie.allow_only("lifetimeType")
    lifetime = cookie.string("lifetimeType") or "Session"
    absolute = duration_s(fields, "absoluteTimeout")
    if lifetime not in ("Session", "Permanent"):
        raise cookie.error("lifetimeType", "Session or Permanent")
    if lifetime == "Permanent" and not absolute:
        raise fields.error("absoluteTimeout", "a duration, because the cookie is permanent")
    if absolute and (kind == "Header" or lifetime == "Session"):
        raise fields.error("absoluteTimeout", "no duration, except for a permanent cookie")
    return Session(name=name, header=kind == "Header", ttl_s=int(absolute) if absolute else None)


def _rule(fields: Fields, obj: L7Object, matches: Matches, complete: Complete) -> Rule:
    where = fields.path("").rstrip(".")
    found: tuple[Match, ...] = (ANY_REQUEST,)
    try:
        found = matches(fields)
        return complete(fields, obj, found)
    except TranslateError as error:
        return Rule(where=where, matches=found, error=str(error))


def ignored_field(obj: L7Object, name: str) -> Problem:
    """The problem of an unknown field of the spec."""
    return problem_of(
        obj,
        field=f"spec.{name}",
        message="the field is not supported and has no effect",
        severity=Severity.IGNORED,
        reason="UnsupportedValue",
    )


def _hostnames(obj: L7Object) -> Problem:
    return problem_of(
        obj,
        field="spec.hostnames",
        message="hostnames have no effect on routes with a Service as parent; "
        "hint: match the header `host`",
        severity=Severity.IGNORED,
        reason="UnsupportedValue",
    )


def _session_problems(obj: L7Object, rule: Rule) -> list[Problem]:
    """Envoy selects the backend by weight first, and the session's endpoint within it."""
    if rule.session is None or sum(b.ref.weight > 0 for b in rule.backends) < 2:
        return []
    return [
        problem_of(
            obj,
            field=f"{rule.where}.sessionPersistence",
            message="a session persists within one backend; each request selects the backend by "
            "weight",
            severity=Severity.WARNING,
            reason="UnsupportedValue",
        )
    ]
