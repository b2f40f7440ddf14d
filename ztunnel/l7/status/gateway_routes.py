# SPDX-License-Identifier: Apache-2.0
"""The conditions of a route at parents that are ingress gateways or ListenerSets.

Accepted          the route is attached to a listener of the parent, or why not
ResolvedRefs      its backends exist and may be used; also of a route that is not accepted
PartiallyInvalid  only if true: some rules answer 500
"""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.l7.api.stream_route import StreamRoute
from ztunnel.l7.ingress.attachment import (
    Attachment,
    GatewayListeners,
    attach,
    gateway_listeners,
    parent_gateway,
)
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Key, L7Object
from ztunnel.l7.routing.attachment import AcceptedReason, Route
from ztunnel.l7.routing.references import Resolution, ResolvedReason, resolve
from ztunnel.l7.routing.route_status import backends
from ztunnel.l7.status.conditions import Condition
from ztunnel.l7.store import L7Store


class ListenerViews:
    """The effective listeners of gateways, read once per state of the store."""

    def __init__(self) -> None:
        self._seen: tuple[L7Store, int] | None = None
        self._views: dict[L7Key, GatewayListeners] = {}

    def of(self, store: L7Store, gateway: L7Object) -> GatewayListeners:
        """Return the listeners of an ingress gateway."""
        seen = store, store.revision
        if self._seen != seen:
            self._seen = seen
            self._views.clear()
        found = self._views.get(gateway.key)
        if found is None:
            found = self._views[gateway.key] = gateway_listeners(store, gateway)
        return found


def gateway_conditions(
    inputs: Inputs, route: Route, views: ListenerViews
) -> dict[int, tuple[Condition, ...]]:
    """Return the conditions by the position of the parent in `spec.parentRefs`."""
    found = {}
    for number, parent in enumerate(route.parents):
        gateway = parent_gateway(inputs.store, parent)
        if gateway is not None:
            listeners = views.of(inputs.store, gateway)
            attachment = attach(inputs.store, route, number, listeners)
            found[number] = _conditions(inputs, route, attachment)
    return found


def routed_services(
    inputs: Inputs, routes: Iterable[Route], views: ListenerViews
) -> dict[str, tuple[str, ...]]:
    """Return the ingress gateways with routes to a service, both as `namespace/name`."""
    found: dict[str, dict[str, None]] = {}
    for route in routes:
        gateways: dict[str, None] = {}
        for number, parent in enumerate(route.parents):
            gateway = parent_gateway(inputs.store, parent)
            if gateway is not None:
                listeners = views.of(inputs.store, gateway)
                attachment = attach(inputs.store, route, number, listeners)
                if attachment.listeners:
                    gateways[attachment.gateway] = None
        for ref in backends(route) if gateways else ():
            found.setdefault(f"{ref.namespace}/{ref.name}", {}).update(gateways)
    return {service: tuple(gateways) for service, gateways in found.items()}


def gateway_problems(conditions: dict[int, tuple[Condition, ...]]) -> list[str]:
    """Return what is not honoured, for Events."""
    return [
        f"spec.parentRefs[{number}]: {each.message}"
        for number, found in conditions.items()
        for each in found
        if each.status == (each.type == "PartiallyInvalid")
    ]


def _conditions(inputs: Inputs, route: Route, attachment: Attachment) -> tuple[Condition, ...]:
    errors, rules = _errors(route)
    accepted, message = attachment.accepted, attachment.message
    is_accepted = accepted is AcceptedReason.ACCEPTED
    if is_accepted and errors and len(errors) == rules:
        is_accepted, accepted = False, AcceptedReason.UNSUPPORTED_VALUE
        message = "; ".join(errors)
    elif is_accepted:
        names = ", ".join(each.listener.listener.name for each in attachment.listeners)
        message = f"attached to listeners {names} of gateway {attachment.gateway}"
    found = [Condition("Accepted", is_accepted, accepted.value, message), _resolved(inputs, route)]
    if is_accepted and errors:
        text = f"these rules answer 500: {'; '.join(errors)}"
        found.append(Condition("PartiallyInvalid", True, "UnsupportedValue", text))
    return tuple(found)


def _resolved(inputs: Inputs, route: Route) -> Condition:
    found = Resolution(None)
    for ref in backends(route):
        found = resolve(inputs, route.obj, None, ref)
        if found.reason is not ResolvedReason.RESOLVED:
            break
    is_resolved = found.reason is ResolvedReason.RESOLVED
    return Condition("ResolvedRefs", is_resolved, found.reason.value, found.message)


def _errors(route: Route) -> tuple[list[str], int]:
    """The errors of the rules, and the number of rules."""
    if isinstance(route, StreamRoute):
        return [route.error] if route.error else [], 1
    return [rule.error for rule in route.rules if rule.error], len(route.rules)
