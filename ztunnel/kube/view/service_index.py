# SPDX-License-Identifier: Apache-2.0
"""The Services of the cluster, joined with their EndpointSlices. A part of the view.

Services and slices may come in any order. A service is joined once per read of the view, however
many of its slices changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import msgspec

from ztunnel.kube.objects import translation
from ztunnel.kube.objects.fields import Object, ObjectKey, make_key
from ztunnel.kube.objects.waypoints import Traffic
from ztunnel.kube.view.tracked_map import TrackedMap
from ztunnel.kube.view.waypoint_index import WaypointIndex
from ztunnel.mesh.model import Service


class ServiceIndex:
    """`services` gets the result, by Service.key. Services of a namespace that `is_selected` does
    not accept are left out."""

    def __init__(
        self,
        cluster: translation.Cluster,
        services: TrackedMap[Service],
        is_selected: Callable[[str], bool],
        waypoints: WaypointIndex,
    ) -> None:
        self._waypoints = waypoints
        self._cluster = cluster
        self._services = services
        self._is_selected = is_selected
        self._specs: dict[str, translation.ServiceSpec] = {}  # by Service.key
        self._slices: dict[str, dict[str, translation.Slice]] = defaultdict(dict)  # key → name
        self._service_of: dict[ObjectKey, str] = {}  # by the key of the slice
        self._stale: set[str] = set()  # to be joined

    def spec(self, key: str) -> translation.ServiceSpec | None:
        """A Service object, without its endpoints."""
        return self._specs.get(key)

    def put(self, key: ObjectKey, obj: Object) -> str:
        """Add or replace a Service. Raises TranslateError."""
        name = _service_key(key.namespace, key.name)
        self._specs[name] = translation.read_service(obj)
        self._stale.add(name)
        return ""

    def drop(self, key: ObjectKey) -> None:
        """Remove a Service."""
        name = _service_key(key.namespace, key.name)
        self._specs.pop(name, None)
        self._waypoints.forget(key)
        self._stale.add(name)

    def put_slice(self, key: ObjectKey, obj: Object) -> str:
        """Add or replace an EndpointSlice. Raises TranslateError."""
        endpoint_slice = translation.read_slice(obj)
        if endpoint_slice is None:
            self.drop_slice(key)
            return ""
        name = _service_key(endpoint_slice.namespace, endpoint_slice.service)
        if self._service_of.get(key) != name:
            self.drop_slice(key)
        self._service_of[key] = name
        self._slices[name][key.name] = endpoint_slice
        self._stale.add(name)
        return ""

    def drop_slice(self, key: ObjectKey) -> None:
        """Remove an EndpointSlice."""
        name = self._service_of.pop(key, None)
        if name is None:
            return
        del self._slices[name][key.name]
        if not self._slices[name]:
            del self._slices[name]
        self._stale.add(name)

    def namespace_changed(self, namespace: str) -> None:
        """The labels of a namespace have changed: it may be selected, or have a waypoint."""
        self._stale.update(key for key in self._specs if key.partition("/")[0] == namespace)

    def waypoint_changed(self, key: ObjectKey) -> None:
        """The waypoint of a service has changed."""
        self._stale.add(_service_key(key.namespace, key.name))

    def join(self) -> list[str]:
        """Update the services that changed; returns their keys."""
        joined = sorted(self._stale)
        for name in joined:
            self._services.put(name, self._joined(name))
        self._stale.clear()
        return joined

    def _joined(self, name: str) -> Service | None:
        spec, slices = self._specs.get(name), self._slices.get(name, {})
        if spec is None or not self._is_selected(name.partition("/")[0]):
            return None
        waypoint, error, from_ingress = self._waypoints.resolve(
            make_key("Service", spec.namespace, spec.name), spec.labels, Traffic.SERVICE
        )
        pieces = (slices[each] for each in sorted(slices))
        joined = translation.service(spec, pieces, self._cluster, waypoint, error)
        if joined is None or not from_ingress:
            return joined
        return msgspec.structs.replace(joined, ingress_use_waypoint=True)


def _service_key(namespace: str, name: str) -> str:
    return f"{namespace}/{name}"
