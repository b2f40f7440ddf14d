# SPDX-License-Identifier: Apache-2.0
"""`status.parents` of HTTPRoute, GRPCRoute, TCPRoute, TLSRoute and UDPRoute.

    Accepted          the route applies to the parent, or why not
    ResolvedRefs      its backends exist and may be used
    PartiallyInvalid  only if true: some rules are replaced, or Envoy rejects the configuration

After a rejection by Envoy the previous configuration stays in force: the route remains accepted,
and PartiallyInvalid has Envoy's message. Entries of other controllers are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ztunnel.kube.objects.fields import TranslateError
from ztunnel.l7.api.route_fields import ParentRef, parse_parents
from ztunnel.l7.ingress.attachment import parent_gateway
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.routing.attachment import (
    ROUTE_KINDS,
    UDP_KIND,
    AcceptedReason,
    RouteIndex,
)
from ztunnel.l7.routing.references import ResolvedReason
from ztunnel.l7.routing.route_status import ParentStatus, route_status
from ztunnel.l7.status.conditions import Condition, Json
from ztunnel.l7.status.entries import REF_FIELDS, Entry
from ztunnel.l7.status.gateway_routes import (
    ListenerViews,
    gateway_conditions,
    gateway_problems,
)

__all__ = ["REJECTED", "STATUS_KINDS", "route_conditions", "route_problems"]

STATUS_KINDS = (*ROUTE_KINDS, UDP_KIND)
REJECTED = "RejectedByProxy"  # reason: Envoy does not accept the configuration


def route_conditions(
    inputs: Inputs,
    obj: L7Object,
    index: RouteIndex,
    rejected: Mapping[str, str],
    views: ListenerViews,
) -> list[Entry]:
    """Return the parentRefs that concern the mesh, each with its conditions.

    `rejected`: Envoy's message by service, `namespace/name`. `index` is refreshed.
    """
    refs = _mappings(obj.spec.get("parentRefs"))
    route = index.parsed(obj)
    if isinstance(route, Problem):
        return _invalid(inputs, obj, (route,))
    ingress = gateway_conditions(inputs, route, views)
    if obj.kind == UDP_KIND:
        mesh = _udp_conditions(route.parents)
    else:
        status = route_status(inputs, obj, index)
        mesh = {
            each.index: _conditions(each, rejected.get(each.service, "")) for each in status.parents
        }
    found = ingress | mesh
    return [
        Entry(_reference(refs[number]), found[number], number in ingress)
        for number in sorted(found)
        if number < len(refs)
    ]


def route_problems(
    inputs: Inputs, obj: L7Object, index: RouteIndex, views: ListenerViews
) -> tuple[str, ...]:
    """Return what is not honoured of a route, for Events; a missing waypoint is not a problem."""
    route = index.parsed(obj)
    if isinstance(route, Problem):
        return (f"{route.field}: {route.message}",)
    found = gateway_conditions(inputs, route, views)
    if obj.kind == UDP_KIND:
        return tuple(gateway_problems(found | _udp_conditions(route.parents)))
    problems = [
        f"{each.field}: {each.message}"
        for each in route_status(inputs, obj, index).problems
        if each.reason != "NoWaypoint"
    ]
    return tuple(dict.fromkeys((*problems, *gateway_problems(found))))


def _udp_conditions(parents: Sequence[ParentRef]) -> dict[int, tuple[Condition, ...]]:
    text = "UDP does not pass waypoints: the route has no effect"
    condition = Condition("Accepted", False, AcceptedReason.UNSUPPORTED_VALUE.value, text)
    return {
        number: (condition,)
        for number, parent in enumerate(parents)
        if parent.kind in ("Service", "Hostname")
    }


def _conditions(status: ParentStatus, rejected: str) -> tuple[Condition, ...]:
    is_accepted = status.accepted is AcceptedReason.ACCEPTED
    message = status.accepted_message
    if is_accepted and status.service and not status.waypoint:
        message = f"service {status.service} uses no waypoint: the route has no effect"
    elif is_accepted and status.waypoint:
        message = f"applied by waypoint {status.waypoint}"
    is_resolved = status.resolved is ResolvedReason.RESOLVED
    found = [
        Condition("Accepted", is_accepted, status.accepted.value, message),
        Condition("ResolvedRefs", is_resolved, status.resolved.value, status.resolved_message),
    ]
    if rejected:
        text = f"Envoy rejects the configuration, the previous one stays in force: {rejected}"
        found.append(Condition("PartiallyInvalid", True, REJECTED, text))
    elif status.partially_invalid:
        text = f"these rules answer 500: {status.partially_invalid}"
        found.append(Condition("PartiallyInvalid", True, "UnsupportedValue", text))
    return tuple(found)


def _invalid(inputs: Inputs, obj: L7Object, problems: tuple[Problem, ...]) -> list[Entry]:
    """A route that cannot be read: rejected at every parent that concerns the mesh."""
    errors = [each for each in problems if each.severity is Severity.ERROR]
    text = "; ".join(each.message for each in errors or problems)
    condition = Condition("Accepted", False, AcceptedReason.UNSUPPORTED_VALUE.value, text)
    refs = _mappings(obj.spec.get("parentRefs"))
    try:
        parents = parse_parents(obj)
    except TranslateError:
        parents = ()
    found = []
    for ref, parent in zip(refs, parents, strict=False):
        is_ingress = parent_gateway(inputs.store, parent) is not None
        if is_ingress or parent.kind in ("Service", "Hostname"):
            found.append(Entry(_reference(ref), (condition,), is_ingress))
    return found


def _reference(ref: Json) -> Json:
    """A parentRef as the status repeats it."""
    return {name: ref[name] for name in REF_FIELDS if ref.get(name) is not None}


def _mappings(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
