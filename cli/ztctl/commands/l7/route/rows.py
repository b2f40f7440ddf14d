# SPDX-License-Identifier: Apache-2.0
"""Routes and what becomes of them, as rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ztctl.output import Row
from ztunnel.l7.ingress.attachment import route_attachments
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem
from ztunnel.l7.routing.attachment import UDP_KIND, AcceptedReason, RouteIndex
from ztunnel.l7.routing.references import ResolvedReason
from ztunnel.l7.routing.route_status import ParentStatus, RouteStatus, route_status
from ztunnel.l7.status.gateway_routes import ListenerViews, gateway_conditions
from ztunnel.l7.status.routes import STATUS_KINDS


def route_rows(inputs: Inputs) -> list[Row]:
    """Return a row per route and parent, with the problems of the route."""
    index = RouteIndex()
    index.refresh(inputs.store)
    routes = [o for kind in STATUS_KINDS for o in inputs.store.of_kind(kind)]
    return [
        row
        for obj in sorted(routes, key=lambda o: (o.namespace, o.name, o.kind))
        for row in _rows(inputs, obj, index)
    ]


def _rows(inputs: Inputs, obj: L7Object, index: RouteIndex) -> Iterator[Row]:
    is_udp = obj.kind == UDP_KIND  # services have none
    status = RouteStatus(()) if is_udp else route_status(inputs, obj, index)
    attached = list(_attachments(inputs, obj, index))
    problems = [msgspec.to_builtins(p) for p in status.problems]
    base = {"kind": obj.kind, "namespace": obj.namespace, "name": obj.name, "problems": problems}
    if not status.parents and not attached:
        state = "invalid" if problems else "of another controller"
        empty = {"parent": "", "ports": [], "waypoint": "", "gateway": "", "message": ""}
        yield {**base, **empty, "state": state}
    yield from ({**base, **each} for each in attached)
    for parent in status.parents:
        yield {**base, **_parent(parent)}


def _attachments(inputs: Inputs, obj: L7Object, index: RouteIndex) -> Iterator[dict[str, Any]]:
    """The parents that are ingress gateways or ListenerSets."""
    route = index.parsed(obj)
    if isinstance(route, Problem):
        return
    conditions = gateway_conditions(inputs, route, ListenerViews())
    for each in route_attachments(inputs.store, route):
        failed = [
            condition
            for condition in conditions[each.index]
            if condition.status == (condition.type == "PartiallyInvalid")
        ]
        shown = failed[:1] or conditions[each.index][:1]
        ref = each.parent
        yield {
            "parent": f"{ref.kind} {ref.namespace}/{ref.name}",
            "ports": sorted({match.listener.listener.port for match in each.listeners}),
            "waypoint": "",
            "gateway": each.gateway,
            "state": failed[0].reason if failed else "Accepted",
            "message": shown[0].message,
        }


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
        "gateway": status.waypoint,
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
