# SPDX-License-Identifier: Apache-2.0
"""Which routes attach to which listeners of ingress gateways (Gateway API, "Attachment").

    parentRef ─▶ listeners of the Gateway, or of the ListenerSet, by sectionName and port
              ─▶ that allow the kind of route ─▶ and its namespace ─▶ whose hostnames intersect

A reference to a Gateway concerns the Gateway's own listeners only (GEP-1713). Routes attach to
listeners that are not usable, too: the listener's conditions report that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ztunnel.kube.objects.l7_kinds import GATEWAY_GROUP
from ztunnel.l7.api.gateway import (
    Listener,
    ListenerProtocol,
    RouteKind,
    parse_gateway,
    parse_listener_set,
)
from ztunnel.l7.api.request_rules import RequestRoute
from ztunnel.l7.api.route_fields import ParentRef
from ztunnel.l7.ingress.hostnames import intersections
from ztunnel.l7.ingress.listeners import (
    EffectiveListener,
    effective_listeners,
    is_ingress_gateway,
    listener_sets,
    namespace_labels,
)
from ztunnel.l7.objects import L7Key, L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of
from ztunnel.l7.routing.attachment import AcceptedReason, Route, RouteIndex
from ztunnel.l7.store import L7Store

GATEWAY, LISTENER_SET = "Gateway", "ListenerSet"
MAX_NAMESPACE_MATCHES = 20_000  # of a namespace's routes at one gateway, per hostname
_STREAMS = (ListenerProtocol.TCP, ListenerProtocol.UDP)


class ListenerMatch(NamedTuple):
    """A listener that a route attaches to, at these hostnames; `` is every name."""

    listener: EffectiveListener
    hostnames: tuple[str, ...]


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a route at one parent. `index`: of spec.parentRefs. `gateway`: the Gateway
    that serves it, `namespace/name`."""

    index: int
    parent: ParentRef
    gateway: str
    accepted: AcceptedReason = AcceptedReason.ACCEPTED
    message: str = ""
    listeners: tuple[ListenerMatch, ...] = ()


class AttachedRoute(NamedTuple):
    """A route of a listener, at these hostnames."""

    route: Route
    hostnames: tuple[str, ...]


ListenerKey = tuple[str, str, str, str]  # EffectiveListener.key
AttachedRoutes = Mapping[ListenerKey, tuple[AttachedRoute, ...]]


class GatewayListeners(NamedTuple):
    """An ingress gateway with its effective listeners, also by owner.

    `problems`: of its ListenerSets.
    """

    gateway: L7Object
    listeners: tuple[EffectiveListener, ...]
    by_owner: dict[L7Key, list[EffectiveListener]]
    problems: tuple[Problem, ...] = ()


def gateway_listeners(store: L7Store, gateway: L7Object) -> GatewayListeners:
    """Return the listeners of a Gateway that is an ingress gateway."""
    found = grouped(gateway, effective_listeners(store, gateway))
    sets = listener_sets(store, parse_gateway(gateway))
    return found._replace(problems=tuple(p for each in sets for p in each.problems))


def grouped(gateway: L7Object, listeners: tuple[EffectiveListener, ...]) -> GatewayListeners:
    """Return a gateway with these listeners."""
    by_owner: dict[L7Key, list[EffectiveListener]] = {}
    for each in listeners:
        by_owner.setdefault(each.listener.owner.key, []).append(each)
    return GatewayListeners(gateway, listeners, by_owner)


def parent_gateway(store: L7Store, parent: ParentRef) -> L7Object | None:
    """Return the ingress gateway that a parent belongs to; None for parents of others."""
    if parent.group != GATEWAY_GROUP or parent.kind not in (GATEWAY, LISTENER_SET):
        return None
    namespace, name = parent.namespace, parent.name
    if parent.kind == LISTENER_SET:
        found = store.get(LISTENER_SET, namespace, name)
        if found is None:
            return None
        namespace, _, name = parse_listener_set(found).gateway.partition("/")
    gateway = store.get(GATEWAY, namespace, name)
    return gateway if is_ingress_gateway(store, gateway) else None


def route_attachments(store: L7Store, route: Route) -> tuple[Attachment, ...]:
    """Return the fate of a route at its parents that are ingress gateways or ListenerSets."""
    found = []
    for number, parent in enumerate(route.parents):
        gateway = parent_gateway(store, parent)
        if gateway is not None:
            known = gateway_listeners(store, gateway)
            found.append(attach(store, route, number, known))
    return tuple(found)


def attach(store: L7Store, route: Route, number: int, gateway: GatewayListeners) -> Attachment:
    """Return what becomes of a route at `spec.parentRefs[number]`, a part of `gateway`."""
    parent = route.parents[number]
    own = gateway.by_owner.get(L7Key(parent.kind, parent.namespace, parent.name), [])
    result = Attachment(
        index=number, parent=parent, gateway=f"{gateway.gateway.namespace}/{gateway.gateway.name}"
    )
    if not own and parent.kind == LISTENER_SET:
        text = f"the Gateway does not admit ListenerSet {parent.namespace}/{parent.name}"
        return _rejected(result, AcceptedReason.NOT_ALLOWED, text)
    named = [each for each in own if _is_named(each.listener, parent)]
    if not named:
        wanted = parent.section or parent.port or "any name"
        text = f"{parent.kind} {parent.namespace}/{parent.name} has no listener {wanted}"
        return _rejected(result, AcceptedReason.NO_MATCHING_PARENT, text)
    kind = RouteKind(GATEWAY_GROUP, route.obj.kind)
    fitting = [each for each in named if kind in each.kinds]
    if not fitting:
        names = _names(named)
        text = f"listeners {names} do not allow kind {route.obj.kind}"
        return _rejected(result, AcceptedReason.NOT_ALLOWED, text)
    labels = namespace_labels(store, route.obj.namespace)
    allowed = [each for each in fitting if _admits(each.listener, route.obj.namespace, labels)]
    if not allowed:
        text = f"listeners {_names(fitting)} do not allow namespace {route.obj.namespace}"
        return _rejected(result, AcceptedReason.NOT_ALLOWED, text)
    matches = [ListenerMatch(each, _hostnames(each.listener, route)) for each in allowed]
    serving = tuple(each for each in matches if each.hostnames)
    if not serving:
        text = f"no hostname of the route matches one of listeners {_names(allowed)}"
        return _rejected(result, AcceptedReason.NO_MATCHING_HOSTNAME, text)
    return msgspec.structs.replace(result, listeners=serving)


def attached_routes(
    store: L7Store, gateway: GatewayListeners, index: RouteIndex
) -> dict[ListenerKey, tuple[AttachedRoute, ...]]:
    """Return the routes of each listener by EffectiveListener.key, oldest first.

    `index` must be refreshed from `store`. The number of routes is `attachedRoutes` in the status.
    """
    found: dict[ListenerKey, dict[int, AttachedRoute]] = {
        each.key: {} for each in gateway.listeners
    }
    for owner in gateway.by_owner:
        for route in index.of_gateway(*owner):
            for number, parent in enumerate(route.parents):
                if (parent.kind, parent.namespace, parent.name) == owner:
                    for each in attach(store, route, number, gateway).listeners:
                        attached = AttachedRoute(route, each.hostnames)
                        found[each.listener.key][id(route)] = attached
    return {key: _oldest_first(routes.values()) for key, routes in found.items()}


def within_limit(routes: AttachedRoutes) -> tuple[AttachedRoutes, tuple[Problem, ...]]:
    """Return the routes without those that exceed their namespace's limit: the youngest ones.

    The compilation of a gateway that several namespaces share must not take too long because of
    one of them.
    """
    used: Counter[str] = Counter()
    for attached in routes.values():
        for each in attached:
            used[each.route.obj.namespace] += _cost(each)
    exceeding = {each for each, cost in used.items() if cost > MAX_NAMESPACE_MATCHES}
    if not exceeding:
        return routes, ()
    used.clear()
    kept: dict[ListenerKey, list[AttachedRoute]] = {key: [] for key in routes}
    problems = []
    every = [(each, key) for key, attached in routes.items() for each in attached]
    for each, key in sorted(every, key=lambda pair: pair[0].route.obj.age_rank):
        obj = each.route.obj
        used[obj.namespace] += _cost(each)
        if obj.namespace not in exceeding or used[obj.namespace] <= MAX_NAMESPACE_MATCHES:
            kept[key].append(each)
        else:
            problems.append(_beyond_limit(obj))
    return {key: tuple(each) for key, each in kept.items()}, tuple(dict.fromkeys(problems))


def _cost(attached: AttachedRoute) -> int:
    """The number of Envoy's routes or chains."""
    route = attached.route
    if not isinstance(route, RequestRoute):
        return len(attached.hostnames)
    return len(attached.hostnames) * sum(max(1, len(rule.matches)) for rule in route.rules)


def _beyond_limit(obj: L7Object) -> Problem:
    return problem_of(
        obj,
        message=f"not served: older routes of namespace {obj.namespace} have more than "
        f"{MAX_NAMESPACE_MATCHES} matches at the gateway; each hostname counts",
        severity=Severity.ERROR,
        reason="TooManyRoutes",
    )


def _oldest_first(routes: Iterable[AttachedRoute]) -> tuple[AttachedRoute, ...]:
    return tuple(sorted(routes, key=lambda each: each.route.obj.age_rank))


def _is_named(listener: Listener, parent: ParentRef) -> bool:
    return parent.section in ("", listener.name) and parent.port in (None, listener.port)


def _admits(listener: Listener, namespace: str, labels: Mapping[str, str]) -> bool:
    return listener.allowed.namespaces.admits(listener.owner.namespace, namespace, labels)


def _hostnames(listener: Listener, route: Route) -> tuple[str, ...]:
    hostname = "" if listener.protocol in _STREAMS else listener.hostname
    return intersections(hostname, route.hostnames)


def _names(listeners: Sequence[EffectiveListener]) -> str:
    return ", ".join(each.listener.name for each in listeners)


def _rejected(result: Attachment, reason: AcceptedReason, message: str) -> Attachment:
    return msgspec.structs.replace(result, accepted=reason, message=message)
