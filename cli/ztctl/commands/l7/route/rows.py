# SPDX-License-Identifier: Apache-2.0
"""Routes and what becomes of them, as rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ztctl.output import Row
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.routing.attachment import ROUTE_KINDS, AcceptedReason, RouteIndex
from ztunnel.l7.routing.references import ResolvedReason
from ztunnel.l7.routing.route_status import ParentStatus, route_status


def route_rows(inputs: Inputs) -> list[Row]:
    """Return a row per route and parent, with the problems of the route."""
    index = RouteIndex()
    index.refresh(inputs.store)
    routes = [o for kind in ROUTE_KINDS for o in inputs.store.of_kind(kind)]
    return [
        row
        for obj in sorted(routes, key=lambda o: (o.namespace, o.name, o.kind))
        for row in _rows(inputs, obj, index)
    ]


def _rows(inputs: Inputs, obj: L7Object, index: RouteIndex) -> Iterator[Row]:
    status = route_status(inputs, obj, index)
    problems = [msgspec.to_builtins(p) for p in status.problems]
    base = {"kind": obj.kind, "namespace": obj.namespace, "name": obj.name, "problems": problems}
    if not status.parents:
        state = "invalid" if problems else "not for services"
        yield {**base, "parent": "", "ports": [], "waypoint": "", "state": state, "message": ""}
    for parent in status.parents:
        yield {**base, **_parent(parent)}


def _parent(status: ParentStatus) -> dict[str, Any]:
    ref = status.parent
    messages = (status.accepted_message, status.partially_invalid, status.resolved_message)
    message = "; ".join(filter(None, messages))
    if status.accepted is AcceptedReason.ACCEPTED and not status.waypoint:
        message = f"{status.service} uses no waypoint: the route has no effect"
    return {
        "parent": f"{ref.kind} {ref.namespace}/{ref.name}",
        "ports": list(status.ports),
        "waypoint": status.waypoint,
        "state": _state(status),
        "message": message,
    }


def _state(status: ParentStatus) -> str:
    if status.accepted is not AcceptedReason.ACCEPTED:
        return status.accepted.value
    if status.resolved is not ResolvedReason.RESOLVED:
        return status.resolved.value
    if status.partially_invalid:
        return "PartiallyInvalid"
    return "Accepted" if status.waypoint else "NoWaypoint"
