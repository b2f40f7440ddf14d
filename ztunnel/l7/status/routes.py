# SPDX-License-Identifier: Apache-2.0
"""`status.parents` of HTTPRoute, GRPCRoute, TCPRoute and TLSRoute.

    Accepted          the route applies to the parent, or why not
    ResolvedRefs      its backends exist and may be used
    PartiallyInvalid  only if true: some rules are replaced, or Envoy rejects the configuration

After a rejection by Envoy the previous configuration stays in force: the route remains accepted,
and PartiallyInvalid has Envoy's message. Entries of other controllers are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

from ztunnel.kube.objects.fields import TranslateError
from ztunnel.l7.api.route_fields import parse_parents
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.routing.attachment import ROUTE_KINDS, AcceptedReason, RouteIndex
from ztunnel.l7.routing.references import ResolvedReason
from ztunnel.l7.routing.route_status import ParentStatus, route_status
from ztunnel.l7.status.conditions import Condition, Json, has_conditions, render_conditions

__all__ = ["REJECTED", "ROUTE_KINDS", "merge_parents", "route_conditions", "route_problems"]

REJECTED = "RejectedByProxy"  # reason: Envoy does not accept the configuration
MAX_PARENTS = 32  # in a status, by its schema
_REF_FIELDS = ("group", "kind", "namespace", "name", "sectionName", "port")


def route_conditions(
    inputs: Inputs, obj: L7Object, index: RouteIndex, rejected: Mapping[str, str]
) -> list[tuple[Json, tuple[Condition, ...]]]:
    """Return the parentRefs that concern the mesh, each with its conditions.

    `rejected`: Envoy's message by service, `namespace/name`. `index` is refreshed.
    """
    found = route_status(inputs, obj, index)
    refs = _mappings(obj.spec.get("parentRefs"))
    if not found.parents and found.problems:
        return _invalid(obj, refs, found.problems)
    return [
        (_reference(refs[each.index]), _conditions(each, rejected.get(each.service, "")))
        for each in found.parents
        if each.index < len(refs)
    ]


def route_problems(inputs: Inputs, obj: L7Object, index: RouteIndex) -> tuple[str, ...]:
    """Return what is not honoured of a route, for Events; a missing waypoint is not a problem."""
    return tuple(
        f"{each.field}: {each.message}"
        for each in route_status(inputs, obj, index).problems
        if each.reason != "NoWaypoint"
    )


def merge_parents(
    current: object,
    ours: list[tuple[Json, tuple[Condition, ...]]],
    controller: str,
    generation: int,
    now: str,
) -> list[Json] | None:
    """Return the parents to write, with those of other controllers; None if they are current."""
    existing = _mappings(current)
    own = {_key(each.get("parentRef")): each for each in existing if _is_of(each, controller)}
    others = [each for each in existing if not _is_of(each, controller)]
    merged = [
        {
            "parentRef": ref,
            "controllerName": controller,
            "conditions": render_conditions(
                conditions, own.get(_key(ref), {}).get("conditions"), generation, now
            ),
        }
        for ref, conditions in ours[: max(0, MAX_PARENTS - len(others))]
    ]
    is_current = len(merged) == len(own) and all(
        _is_current(own.get(_key(each["parentRef"])), each) for each in merged
    )
    return None if is_current else [*others, *merged]


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


def _invalid(
    obj: L7Object, refs: list[Json], problems: tuple[Problem, ...]
) -> list[tuple[Json, tuple[Condition, ...]]]:
    """A route that cannot be read: rejected at every parent that is a service."""
    errors = [each for each in problems if each.severity is Severity.ERROR]
    text = "; ".join(each.message for each in errors or problems)
    condition = Condition("Accepted", False, AcceptedReason.UNSUPPORTED_VALUE.value, text)
    try:
        parents = parse_parents(obj)
    except TranslateError:
        parents = ()
    return [
        (_reference(ref), (condition,))
        for ref, parent in zip(refs, parents, strict=False)
        if parent.kind in ("Service", "Hostname")
    ]


def _reference(ref: Json) -> Json:
    """A parentRef as the status repeats it."""
    return {name: ref[name] for name in _REF_FIELDS if ref.get(name) is not None}


def _key(ref: object) -> tuple[str, ...]:
    fields = ref if isinstance(ref, dict) else {}
    return tuple(str(fields.get(name) or "") for name in _REF_FIELDS)


def _is_of(entry: Json, controller: str) -> bool:
    return entry.get("controllerName") == controller


def _is_current(before: Json | None, wanted: Json) -> bool:
    if before is None:
        return False
    known = before.get("conditions")
    is_same_size = len(_mappings(known)) == len(wanted["conditions"])
    return is_same_size and has_conditions(known, wanted["conditions"])


def _mappings(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
