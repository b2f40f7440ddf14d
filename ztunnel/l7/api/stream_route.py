# SPDX-License-Identifier: Apache-2.0
"""Parses TCPRoute, TLSRoute and UDPRoute (Gateway API v1.6)."""

from __future__ import annotations

import re

import msgspec

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.route_fields import (
    MAX_BACKENDS,
    BackendRef,
    ParentRef,
    parse_backend,
    parse_parents,
)
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of

_HOSTNAME = re.compile(r"(?:\*\.)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class StreamRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed route: connections, or flows of datagrams, go to one of the backends, by weight.

    `error`: why the route is replaced by one without backends, so that connections are closed.
    `hostnames`: the SNI names that a TLSRoute matches, exact or `*.suffix`; empty for all.
    """

    obj: L7Object
    parents: tuple[ParentRef, ...]
    backends: tuple[BackendRef, ...]
    hostnames: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    error: str = ""


def parse_stream_route(obj: L7Object) -> StreamRoute:
    """Return the parsed route. Raises TranslateError if nothing of it can be used."""
    spec = Fields(obj.spec, "spec.")
    hostnames = tuple(spec.strings("hostnames")) if obj.kind == "TLSRoute" else ()
    if not all(_HOSTNAME.fullmatch(each) for each in hostnames):
        raise spec.error("hostnames", "hostnames, or *. and a hostname")
    rules = list(spec.mappings("rules"))
    if len(rules) > 1:  # Gateway API permits one, because connections have nothing to match
        raise spec.error("rules", "one rule")
    for rule in rules:
        rule.allow_only("name", "backendRefs")
        if sum(1 for _ in rule.mappings("backendRefs")) > MAX_BACKENDS:
            raise rule.error("backendRefs", f"at most {MAX_BACKENDS} backends")
    known = ("parentRefs", "rules", "hostnames" if obj.kind == "TLSRoute" else "rules")
    return StreamRoute(
        obj=obj,
        parents=parse_parents(obj),
        backends=tuple(
            parse_backend(ref, obj.namespace)
            for rule in rules
            for ref in rule.mappings("backendRefs")
        ),
        hostnames=hostnames,
        problems=tuple(
            problem_of(
                obj,
                field=f"spec.{name}",
                message="the field is not supported and has no effect",
                severity=Severity.IGNORED,
                reason="UnsupportedValue",
            )
            for name in sorted(obj.spec)
            if name not in known
        ),
    )
