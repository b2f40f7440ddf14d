# SPDX-License-Identifier: Apache-2.0
"""Which routes attach to which ports of services (GAMMA: Gateway API, GEP-1294).

A route in its service's namespace is a producer route and applies to all clients. A route in
another namespace is a consumer route: it applies to clients of its own namespace, and replaces
the producer routes for them. If routes of several kinds attach to a port, those of the most
specific kind apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

import msgspec

from ztunnel.kube.objects.fields import TranslateError
from ztunnel.kube.objects.l7_kinds import GATEWAY_GROUP
from ztunnel.l7.api.grpc_route import parse_grpc_route
from ztunnel.l7.api.http_route import parse_http_route
from ztunnel.l7.api.request_rules import ANY_REQUEST, RequestRoute, Rule
from ztunnel.l7.api.route_common import route_problem
from ztunnel.l7.api.route_fields import ParentRef, parse_parents
from ztunnel.l7.api.stream_route import StreamRoute, parse_stream_route
from ztunnel.l7.inputs import Protocol
from ztunnel.l7.objects import L7Key, L7Object
from ztunnel.l7.problems import Problem
from ztunnel.l7.routing.protocols import declared_protocol
from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import Service, ServicePort

Route = RequestRoute | StreamRoute

# Most specific first: GEP-1294, "Route types".
ROUTE_KINDS = ("GRPCRoute", "HTTPRoute", "TLSRoute", "TCPRoute")
UDP_KIND = "UDPRoute"  # of gateways only: UDP does not pass waypoints
PRODUCER = ""  # the group of producer routes
ISTIO_GROUP = "networking.istio.io"
_PARSERS: dict[str, Callable[[L7Object], Route]] = {
    "GRPCRoute": parse_grpc_route,
    "HTTPRoute": parse_http_route,
    "TLSRoute": parse_stream_route,
    "TCPRoute": parse_stream_route,
    UDP_KIND: parse_stream_route,
}
_REQUESTS = (Protocol.HTTP, Protocol.HTTP2)


class AcceptedReason(StrEnum):
    """Reasons of the condition Accepted of a route's parent."""

    ACCEPTED = "Accepted"
    NO_MATCHING_PARENT = "NoMatchingParent"
    NO_MATCHING_HOSTNAME = "NoMatchingListenerHostname"
    NOT_ALLOWED = "NotAllowedByListeners"
    UNSUPPORTED_VALUE = "UnsupportedValue"
    CONFLICTED = "Conflicted"


class PortRoutes(msgspec.Struct, frozen=True):
    """The routes that apply to a port, oldest first, by group.

    The group is the clients' namespace for consumer routes, and PRODUCER. The routes of a group
    are of one kind. `explicit`: a route names the port.
    """

    groups: dict[str, tuple[Route, ...]]
    explicit: bool

    def kind(self, group: str = PRODUCER) -> str:
        """The kind of the routes of a group; empty if there are none."""
        routes = self.groups.get(group, ())
        return routes[0].obj.kind if routes else ""


class Candidate(NamedTuple):
    """A route that names a port of a service, or all ports of it."""

    route: Route
    explicit: bool


class RouteIndex:
    """All routes, parsed once per object, by the service or gateway that they name as parent."""

    def __init__(self) -> None:
        self._parsed: dict[L7Key, tuple[L7Object, Route | Problem]] = {}
        self._by_parent: dict[tuple[str, str, str], tuple[Route, ...]] = {}
        self._seen: tuple[object, ...] = ()
        self.problems: tuple[Problem, ...] = ()

    def refresh(self, store: L7Store) -> None:
        """Read the routes of a store, if they have changed."""
        seen = (store, *(store.revision_of(kind) for kind in _PARSERS))
        if seen == self._seen:
            return
        self._seen = seen
        parsed = {o.key: self._parse(o) for kind in _PARSERS for o in store.of_kind(kind)}
        self._parsed = parsed
        by_parent: dict[tuple[str, str, str], dict[L7Key, Route]] = {}
        for obj, route in sorted(parsed.values(), key=lambda p: p[0].age_rank):
            for parent in () if isinstance(route, Problem) else route.parents:
                key = _parent_key(parent)
                is_carried = obj.kind != UDP_KIND or parent.group == GATEWAY_GROUP
                if key is not None and is_carried and not isinstance(route, Problem):
                    by_parent.setdefault(key, {})[obj.key] = route
        self._by_parent = {key: tuple(routes.values()) for key, routes in by_parent.items()}
        self.problems = tuple(p for _, p in parsed.values() if isinstance(p, Problem))

    def parsed(self, obj: L7Object) -> Route | Problem:
        """Return the parsed route, or why it cannot be used."""
        return self._parse(obj)[1]

    @property
    def routes(self) -> tuple[Route, ...]:
        """All routes that can be read."""
        found = (route for _, route in self._parsed.values())
        return tuple(each for each in found if not isinstance(each, Problem))

    def of_service(self, service: Service) -> tuple[Route, ...]:
        """Return the routes that name a service as parent, oldest first."""
        found = self._by_parent.get(("Service", service.namespace, service.name), ())
        if service.is_service_entry:
            found = self._by_parent.get(("Hostname", "", service.hostname), ())
        return found

    def of_gateway(self, kind: str, namespace: str, name: str) -> tuple[Route, ...]:
        """Return the routes that name a Gateway or ListenerSet as parent, oldest first."""
        return self._by_parent.get((kind, namespace, name), ())

    def _parse(self, obj: L7Object) -> tuple[L7Object, Route | Problem]:
        known = self._parsed.get(obj.key)
        if known is not None and known[0] is obj:
            return known
        try:
            return obj, _PARSERS[obj.kind](obj)
        except TranslateError as error:
            return obj, _rejecting(obj, str(error))


def port_routes(routes: Iterable[Route], service: Service, port: ServicePort) -> PortRoutes:
    """Return which of the routes of a service apply to a port."""
    found = [c for r in routes if (c := _candidate(r, service, port)) is not None]
    groups: dict[str, list[Candidate]] = {}
    for each in found:
        groups.setdefault(group_of(each.route, service), []).append(each)
    winners = {group: _most_specific(candidates) for group, candidates in groups.items()}
    explicit = any(c.explicit for candidates in winners.values() for c in candidates)
    return PortRoutes(
        {group: tuple(c.route for c in candidates) for group, candidates in winners.items()},
        explicit,
    )


def group_of(route: Route, service: Service) -> str:
    """Return the clients' namespace for a consumer route, PRODUCER for a producer route."""
    return PRODUCER if route.obj.namespace == service.namespace else route.obj.namespace


def names_port(parent: ParentRef, service: Service, port: ServicePort) -> bool:
    """Return whether a parent reference names a service, and either the port or no port."""
    return (
        _parent_key(parent) == _service_key(service)
        and parent.port in (None, port.port)
        and parent.section in ("", port.name)
    )


def applies(kind: str, port: ServicePort, *, explicit: bool) -> bool:
    """Return whether a kind of route applies to a port of this protocol.

    A reference without a port applies only where the protocol fits, so that a route for a
    service's HTTP ports does not affect its other ports.
    """
    declared = declared_protocol(port)
    if kind in ("HTTPRoute", "GRPCRoute"):
        return declared is None or declared in _REQUESTS
    if kind == "TLSRoute":
        return declared is Protocol.TLS or (explicit and declared not in _REQUESTS)
    return explicit or declared not in _REQUESTS


def _rejecting(obj: L7Object, error: str) -> Route | Problem:
    """A route in place of an invalid one: it rejects what no other route matches. A Problem if
    even the parents are invalid, so that it is not known what the route concerns."""
    problem = route_problem(obj, "spec", error, AcceptedReason.UNSUPPORTED_VALUE)
    try:
        parents = parse_parents(obj)
    except TranslateError:
        return problem
    if obj.kind in ("TCPRoute", "TLSRoute", UDP_KIND):
        return StreamRoute(obj=obj, parents=parents, backends=(), problems=(problem,), error=error)
    rule = Rule(where="spec", matches=(ANY_REQUEST,), error=error)
    return RequestRoute(obj=obj, parents=parents, rules=(rule,), problems=(problem,))


def _candidate(route: Route, service: Service, port: ServicePort) -> Candidate | None:
    if isinstance(route, StreamRoute) and group_of(route, service) != PRODUCER:
        return None  # connections are not matched by the client's namespace
    parents = [p for p in route.parents if names_port(p, service, port)]
    explicit = any(p.port is not None or p.section for p in parents)
    if not parents or not applies(route.obj.kind, port, explicit=explicit):
        return None
    return Candidate(route, explicit)


def _most_specific(candidates: list[Candidate]) -> list[Candidate]:
    kinds = {c.route.obj.kind for c in candidates}
    best = next(kind for kind in ROUTE_KINDS if kind in kinds)
    return [c for c in candidates if c.route.obj.kind == best]


def _parent_key(parent: ParentRef) -> tuple[str, str, str] | None:
    if (parent.group, parent.kind) == ("", "Service"):
        return ("Service", parent.namespace, parent.name)
    if (parent.group, parent.kind) == (ISTIO_GROUP, "Hostname"):
        return ("Hostname", "", parent.name)
    if parent.group == GATEWAY_GROUP and parent.kind in ("Gateway", "ListenerSet"):
        return (parent.kind, parent.namespace, parent.name)
    return None


def _service_key(service: Service) -> tuple[str, str, str]:
    if service.is_service_entry:
        return ("Hostname", "", service.hostname)
    return ("Service", service.namespace, service.name)
