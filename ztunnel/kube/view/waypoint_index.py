# SPDX-License-Identifier: Apache-2.0
"""Resolves which waypoint an object uses. A part of the view.

    object's own label ─▶ else, label of its namespace ─▶ Gateway: does it accept this traffic?

A waypoint that does not exist, or does not admit the namespace, is a result with an error:
connections are refused. A waypoint that does not accept the kind of traffic is no waypoint, as in
Istio. The pods and the Service of a Gateway ignore the label of their namespace: otherwise the
waypoint would be in front of itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ztunnel.kube.objects.fields import Object, ObjectKey
from ztunnel.kube.objects.waypoints import (
    USE_WAYPOINT,
    Gateway,
    Traffic,
    gateway_of,
    ingress_uses_waypoint,
    read_gateway,
    read_traffic,
    requested_waypoint,
)

Labels = Mapping[str, str]


class Waypoint(NamedTuple):
    """`name`: `namespace/name` of the Gateway; empty for none. `error`: why it cannot be used.

    `from_ingress`: ingress gateways use it too.
    """

    name: str = ""
    error: str = ""
    from_ingress: bool = False


NONE = Waypoint()


class WaypointIndex:
    """The Gateways and their classes, and which objects depend on each Gateway.

    `labels_of` returns a namespace's labels.
    """

    def __init__(self, labels_of: Callable[[str], Labels]) -> None:
        self._labels_of = labels_of
        self._gateways: dict[str, Gateway] = {}  # by `namespace/name`
        self._classes: dict[str, Traffic] = {}  # GatewayClasses with a label, by name
        self._users: dict[str, set[ObjectKey]] = defaultdict(set)  # by waypoint
        self._waypoint_of: dict[ObjectKey, str] = {}

    def put(self, key: ObjectKey, obj: Object) -> frozenset[ObjectKey]:
        """Add or replace a Gateway; returns the objects to resolve again.

        Raises TranslateError; the previous Gateway remains in effect then.
        """
        name = f"{key.namespace}/{key.name}"
        found = read_gateway(obj)
        if self._gateways.get(name) == found:
            return frozenset()
        self._gateways[name] = found
        return frozenset(self._users.get(name, ()))

    def drop(self, key: ObjectKey) -> frozenset[ObjectKey]:
        """Remove a Gateway; returns the objects to resolve again."""
        name = f"{key.namespace}/{key.name}"
        if self._gateways.pop(name, None) is None:
            return frozenset()
        return frozenset(self._users.get(name, ()))

    def put_class(self, key: ObjectKey, obj: Object) -> frozenset[ObjectKey]:
        """Add or replace a GatewayClass, as `put`. Raises TranslateError."""
        return self._set_class(key.name, read_traffic(obj))

    def drop_class(self, key: ObjectKey) -> frozenset[ObjectKey]:
        """Remove a GatewayClass, as `drop`."""
        return self._set_class(key.name, None)

    def _set_class(self, name: str, traffic: Traffic | None) -> frozenset[ObjectKey]:
        if self._classes.pop(name, None) != traffic:
            concerned = [each for each in self._gateways.items() if each[1].gateway_class == name]
        else:
            concerned = []
        if traffic is not None:
            self._classes[name] = traffic
        users = (self._users.get(gateway, set()) for gateway, _ in concerned)
        return frozenset().union(*users)

    def _accepts(self, gateway: Gateway, traffic: Traffic) -> bool:
        """Whether connections to services, or to workloads, pass the waypoint."""
        accepted = gateway.traffic
        if accepted is None:
            accepted = self._classes.get(gateway.gateway_class, Traffic.SERVICE)
        return accepted in (traffic, Traffic.ALL)

    def resolve(self, key: ObjectKey, labels: Labels, traffic: Traffic) -> Waypoint:
        """The waypoint of an object with these labels, for traffic to services or workloads."""
        inherited = self._labels_of(key.namespace)
        if USE_WAYPOINT not in labels and USE_WAYPOINT not in inherited:  # as of nearly all pods
            if key in self._waypoint_of:
                self._set_dependency(key, "")
            return NONE
        own = requested_waypoint(labels, key.namespace)
        gateway = gateway_of(labels, key.namespace)
        name = own
        if name is None:
            name = "" if gateway else requested_waypoint(inherited, key.namespace) or ""
        if name == gateway:
            name = ""
        self._set_dependency(key, name)
        if not name:
            return NONE
        from_ingress = ingress_uses_waypoint(labels, inherited)
        found = self._gateways.get(name)
        if found is None:
            # the default traffic type is `service`
            is_service = traffic is Traffic.SERVICE or own is not None
            error = f"waypoint {name} does not exist"
            return Waypoint(name, error, from_ingress) if is_service else NONE
        if not self._accepts(found, traffic):
            return NONE
        if not found.admits(key.namespace, inherited):
            return Waypoint(
                name,
                f"waypoint {name} does not admit objects of namespace {key.namespace}; hint: set "
                "allowedRoutes.namespaces of its HBONE listener",
                from_ingress,
            )
        return Waypoint(name, from_ingress=from_ingress)

    def forget(self, key: ObjectKey) -> None:
        """The object does not exist any more."""
        self._set_dependency(key, "")

    def _set_dependency(self, key: ObjectKey, name: str) -> None:
        old = self._waypoint_of.pop(key, "")
        if old and old != name:
            self._users[old].discard(key)
            if not self._users[old]:
                del self._users[old]
        if name:
            self._waypoint_of[key] = name
            self._users[name].add(key)
