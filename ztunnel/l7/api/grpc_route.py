# SPDX-License-Identifier: Apache-2.0
"""Parses GRPCRoute (Gateway API v1.6) into the rules that HTTPRoute has: gRPC's path is
`/<service>/<method>`."""

from __future__ import annotations

import re

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api import route_fields as common
from ztunnel.l7.api.request_rules import Match, PathKind, RequestRoute, Rule
from ztunnel.l7.api.route_common import parse_route, parse_rule_backends, parse_session
from ztunnel.l7.api.route_fields import HeaderModifier, Mirror, ValueKind
from ztunnel.l7.objects import L7Object

_SERVICE = re.compile(r"[A-Za-z_][A-Za-z_0-9.]{0,1023}")
_METHOD = re.compile(r"[A-Za-z_][A-Za-z_0-9]{0,1023}")
_FILTERS = ("RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror")
_ANY_NAME = "[^/]+"


def parse_grpc_route(obj: L7Object) -> RequestRoute:
    """Return the parsed route. Raises TranslateError if nothing of it can be used."""
    return parse_route(obj, _matches, _complete)


def _complete(rule: Fields, obj: L7Object, matches: tuple[Match, ...]) -> Rule:
    rule.allow_only("name", "matches", "filters", "backendRefs", "sessionPersistence")
    filters = tuple(_filter(each, obj.namespace) for each in rule.mappings("filters"))
    return Rule(
        where=rule.path("").rstrip("."),
        name=rule.string("name"),
        matches=matches,
        filters=filters,
        backends=parse_rule_backends(rule, obj.namespace, _filter),
        session=parse_session(rule),
    )


def _matches(rule: Fields) -> tuple[Match, ...]:
    found = tuple(_match(each) for each in rule.mappings("matches"))
    return found or (Match(rank=(0, 0, 0, 0)),)


def _match(fields: Fields) -> Match:
    fields.allow_only("method", "headers")
    headers = common.parse_values(fields, "headers", of_headers=True)
    method = fields.mapping("method")
    method.allow_only("type", "service", "method")
    service, name = method.string("service"), method.string("method")
    kind = common.choice(method, "type", ValueKind, ValueKind.EXACT)
    path_kind, path = _path(method, kind, service, name)
    exact = int(kind is ValueKind.EXACT)
    rank = (exact if service or name else 0, len(service), len(name), len(headers))
    return Match(path_kind=path_kind, path=path, headers=headers, rank=rank)


def _path(method: Fields, kind: ValueKind, service: str, name: str) -> tuple[PathKind, str]:
    if not service and not name:
        return PathKind.PREFIX, "/"
    if kind is ValueKind.REGEX:
        for each in ("service", "method"):
            if method.string(each):
                common.check_regex(method, each)
        pattern = f"/(?:{service or _ANY_NAME})/(?:{name or _ANY_NAME})"
        return PathKind.REGEX, pattern
    if service and not _SERVICE.fullmatch(service):
        raise method.error("service", "the name of a gRPC service")
    if name and not _METHOD.fullmatch(name):
        raise method.error("method", "the name of a gRPC method")
    if service and name:
        return PathKind.EXACT, f"/{service}/{name}"
    if service:
        return PathKind.PREFIX, f"/{service}"
    return PathKind.REGEX, f"/{_ANY_NAME}/{re.escape(name)}"


def _filter(fields: Fields, namespace: str) -> HeaderModifier | Mirror:
    """Return a filter. Raises TranslateError for a filter that is not supported."""
    kind = fields.string("type")
    if kind not in _FILTERS:
        raise fields.error("type", " or ".join(_FILTERS))
    member = kind[:1].lower() + kind[1:]
    fields.allow_only("type", member)
    if kind == "RequestMirror":
        return common.parse_mirror(fields.mapping(member), namespace)
    return common.parse_modifier(
        fields.mapping(member), of_response=kind == "ResponseHeaderModifier"
    )
