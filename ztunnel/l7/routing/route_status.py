# SPDX-License-Identifier: Apache-2.0
"""What becomes of a route, per parent: for conditions, `ztctl route list` and `ztctl analyze`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ztunnel.l7.api.route_fields import BackendRef, Mirror, ParentRef
from ztunnel.l7.api.stream_route import StreamRoute
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.names import is_waypoint_class
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of
from ztunnel.l7.routing.attachment import (
    ISTIO_GROUP,
    PRODUCER,
    AcceptedReason,
    Route,
    RouteIndex,
    applies,
    group_of,
    names_port,
    port_routes,
)
from ztunnel.l7.routing.references import ResolvedReason, resolve
from ztunnel.mesh.model import Service, ServicePort


class ParentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The fate of a route at one parent. `index` is the position in spec.parentRefs.

    `service` is `namespace/name`, `ports` are the ports to which the route applies, `waypoint` is
    the Gateway that enforces it: empty if the service has none, so that the route has no effect.
    `partially_invalid`: why some, but not all, rules are replaced by a 500 response.
    """

    index: int
    parent: ParentRef
    accepted: AcceptedReason = AcceptedReason.ACCEPTED
    accepted_message: str = ""
    resolved: ResolvedReason = ResolvedReason.RESOLVED
    resolved_message: str = ""
    partially_invalid: str = ""
    service: str = ""
    ports: tuple[int, ...] = ()
    waypoint: str = ""


class RouteStatus(msgspec.Struct, frozen=True):
    """The fate of a route: at parents that are services or waypoints, and what is wrong with it."""

    parents: tuple[ParentStatus, ...]
    problems: tuple[Problem, ...] = ()


def route_status(inputs: Inputs, obj: L7Object, index: RouteIndex) -> RouteStatus:
    """Return the status of a route. `index` must be refreshed from `inputs.store`.

    Parents of other kinds, and Gateways of other classes, belong to other controllers: they are
    left out.
    """
    route = index.parsed(obj)
    if isinstance(route, Problem):
        return RouteStatus((), (route,))
    found = [
        status
        for number, parent in enumerate(route.parents)
        if (status := _parent(inputs, route, number, parent, index)) is not None
    ]
    problems = [*route.problems, *(p for s in found for p in _problems(obj, s))]
    return RouteStatus(tuple(found), tuple(dict.fromkeys(problems)))


def _parent(
    inputs: Inputs, route: Route, number: int, parent: ParentRef, index: RouteIndex
) -> ParentStatus | None:
    status = ParentStatus(index=number, parent=parent)
    kind = (parent.group, parent.kind)
    if kind == ("", "Service"):
        service = inputs.mesh.service(f"{parent.namespace}/{parent.name}")
    elif kind == (ISTIO_GROUP, "Hostname"):
        service = inputs.mesh.service_by_hostname(parent.name, parent.namespace)
    elif kind == (ISTIO_GROUP, "ServiceEntry"):
        return _rejected(
            status,
            AcceptedReason.NO_MATCHING_PARENT,
            "ServiceEntry is not supported as parent; hint: use kind Hostname of "
            f"{ISTIO_GROUP} with one of its hosts as name",
        )
    else:
        return _gateway(inputs, status)
    if service is None:
        return _rejected(
            status,
            AcceptedReason.NO_MATCHING_PARENT,
            f"{parent.kind} {parent.namespace}/{parent.name} does not exist",
        )
    return _service(inputs, route, status, service, index)


def _gateway(inputs: Inputs, status: ParentStatus) -> ParentStatus | None:
    parent = status.parent
    gateway = inputs.store.get("Gateway", parent.namespace, parent.name)
    if gateway is None or not is_waypoint_class(gateway.spec.get("gatewayClassName")):
        return None
    return _rejected(
        status,
        AcceptedReason.NOT_ALLOWED,
        f"{parent.namespace}/{parent.name} is a waypoint; hint: use a Service as parent",
    )


def _service(
    inputs: Inputs, route: Route, status: ParentStatus, service: Service, index: RouteIndex
) -> ParentStatus:
    status = msgspec.structs.replace(status, service=service.key, waypoint=service.waypoint)
    rejection = _rejection(route, status, service, index)
    if rejection is not None:
        return _with_references(inputs, route, rejection, service)
    errors, rules = _errors(route)
    if errors and len(errors) == rules:
        status = _rejected(status, AcceptedReason.UNSUPPORTED_VALUE, "; ".join(errors))
    elif errors:
        status = msgspec.structs.replace(status, partially_invalid="; ".join(errors))
    ports = _ports(route, status.parent, service)
    won = tuple(p.port for p in ports if _wins(route, service, p, index))
    return _with_references(inputs, route, msgspec.structs.replace(status, ports=won), service)


def _errors(route: Route) -> tuple[list[str], int]:
    """The errors of the rules, and the number of rules."""
    if isinstance(route, StreamRoute):
        return [route.error] if route.error else [], 1
    return [r.error for r in route.rules if r.error], len(route.rules)


def _rejection(
    route: Route, status: ParentStatus, service: Service, index: RouteIndex
) -> ParentStatus | None:
    parent = status.parent
    named = [p for p in service.ports if p.protocol == "TCP" and names_port(parent, service, p)]
    if not service.vips:
        reason = f"{service.key} is headless: it has no address to which routes could apply"
        return _rejected(status, AcceptedReason.NO_MATCHING_PARENT, reason)
    if not named:
        wanted = parent.section or parent.port or "any"
        reason = f"{service.key} has no TCP port {wanted}"
        return _rejected(status, AcceptedReason.NO_MATCHING_PARENT, reason)
    if isinstance(route, StreamRoute) and group_of(route, service) != PRODUCER:
        reason = f"a {route.obj.kind} applies only to services of its own namespace"
        return _rejected(status, AcceptedReason.UNSUPPORTED_VALUE, reason)
    ports = _ports(route, parent, service)
    if not ports:
        protocols = ", ".join(f"{p.port} is {p.app_protocol or 'undeclared'}" for p in named)
        reason = f"no port has a protocol that fits to {route.obj.kind}: {protocols}"
        return _rejected(status, AcceptedReason.NO_MATCHING_PARENT, reason)
    if not any(_wins(route, service, port, index) for port in ports):
        reason = "a route of a more specific kind attaches to the same port"
        return _rejected(status, AcceptedReason.CONFLICTED, reason)
    return None


def _ports(route: Route, parent: ParentRef, service: Service) -> list[ServicePort]:
    explicit = parent.port is not None or bool(parent.section)
    return [
        p
        for p in service.ports
        if p.protocol == "TCP"
        and names_port(parent, service, p)
        and applies(route.obj.kind, p, explicit=explicit)
    ]


def _wins(route: Route, service: Service, port: ServicePort, index: RouteIndex) -> bool:
    groups = port_routes(index.of_service(service), service, port).groups
    return any(r.obj is route.obj for r in groups.get(group_of(route, service), ()))


def _with_references(
    inputs: Inputs, route: Route, status: ParentStatus, service: Service
) -> ParentStatus:
    for ref in backends(route):
        found = resolve(inputs, route.obj, service, ref)
        if found.reason is not ResolvedReason.RESOLVED:
            return msgspec.structs.replace(
                status, resolved=found.reason, resolved_message=found.message
            )
    return status


def backends(route: Route) -> Iterator[BackendRef]:
    """Iterate over all backends of a route, with those of mirrors."""
    if isinstance(route, StreamRoute):
        yield from route.backends
        return
    for rule in route.rules:
        yield from (b.ref for b in rule.backends)
        yield from (f.backend for f in rule.filters if isinstance(f, Mirror))


def _rejected(status: ParentStatus, reason: AcceptedReason, message: str) -> ParentStatus:
    return msgspec.structs.replace(status, accepted=reason, accepted_message=message)


def _problems(obj: L7Object, status: ParentStatus) -> Iterator[Problem]:
    where = f"spec.parentRefs[{status.index}]"
    if status.accepted is not AcceptedReason.ACCEPTED:
        yield _problem(obj, where, status.accepted_message, status.accepted)
    elif status.service and not status.waypoint:
        message = f"service {status.service} uses no waypoint: the route has no effect"
        yield _problem(obj, where, message, "NoWaypoint", Severity.IGNORED)
    if status.resolved is not ResolvedReason.RESOLVED:
        yield _problem(obj, "spec.rules", status.resolved_message, status.resolved)


def _problem(
    obj: L7Object, field: str, message: str, reason: str, severity: Severity = Severity.ERROR
) -> Problem:
    return problem_of(
        obj,
        field=field,
        message=message,
        severity=severity,
        reason=reason,
    )
