# SPDX-License-Identifier: Apache-2.0
"""The ports that the pods of each ingress gateway serve to the public. A part of the view.

Gateway of an ingress class ─▶ its listeners' ports + those of the ListenerSets that it admits
GatewayClass of another controller, for example istiod's ─▶ none: its pods are not ours
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from ztunnel.kube.objects.fields import Object, ObjectKey, TranslateError
from ztunnel.kube.objects.gateways import (
    CONTROLLER_DOMAIN,
    GatewayListeners,
    ListenerSet,
    read_controller,
    read_gateway_listeners,
    read_listener_set,
)
from ztunnel.kube.objects.l7_kinds import INGRESS_CLASSES
from ztunnel.mesh.model import GatewayPort

MAX_PORTS = 512  # of one gateway: a node's map has 16,384 entries
Ports = tuple[GatewayPort, ...]
Labels = Mapping[str, str]


class GatewayPortIndex:
    """All Gateways and ListenerSets. Methods that change the index return the `namespace/name` of
    the Gateways whose ports may differ. `labels_of` returns a namespace's labels."""

    def __init__(self, labels_of: Callable[[str], Labels]) -> None:
        self._labels_of = labels_of
        self._gateways: dict[str, GatewayListeners] = {}
        self._sets: dict[ObjectKey, ListenerSet] = {}
        self._sets_of: dict[str, set[ObjectKey]] = defaultdict(set)  # by Gateway
        self._foreign: set[str] = set()  # ingress classes of other controllers

    def ports(self, gateway: str) -> Ports:
        """The ports of a Gateway, at most MAX_PORTS, its own first; none if it is not ours."""
        found = self._gateways.get(gateway)
        if found is None or not self._is_ours(found):
            return ()
        ports = dict.fromkeys(found.ports)
        for key in sorted(self._sets_of.get(gateway, ())):
            each = self._sets[key]
            if found.admits(each.namespace, self._labels_of(each.namespace)):
                ports.update(dict.fromkeys(each.ports))
        return tuple(ports)[:MAX_PORTS]

    def put_gateway(self, key: ObjectKey, obj: Object) -> set[str]:
        """Add or replace a Gateway; an invalid one has no ports."""
        name = f"{key.namespace}/{key.name}"
        try:
            self._gateways[name] = read_gateway_listeners(obj)
        except TranslateError:
            self._gateways.pop(name, None)
        return {name}

    def drop_gateway(self, key: ObjectKey) -> set[str]:
        """Remove a Gateway."""
        name = f"{key.namespace}/{key.name}"
        return {name} if self._gateways.pop(name, None) is not None else set()

    def put_set(self, key: ObjectKey, obj: Object) -> set[str]:
        """Add or replace a ListenerSet; an invalid one has no ports."""
        changed = self.drop_set(key)
        try:
            found = read_listener_set(obj)
        except TranslateError:
            return changed
        if not found.gateway:
            return changed
        self._sets[key] = found
        self._sets_of[found.gateway].add(key)
        return changed | {found.gateway}

    def drop_set(self, key: ObjectKey) -> set[str]:
        """Remove a ListenerSet."""
        known = self._sets.pop(key, None)
        if known is None:
            return set()
        self._sets_of[known.gateway].discard(key)
        if not self._sets_of[known.gateway]:
            del self._sets_of[known.gateway]
        return {known.gateway}

    def set_class(self, name: str, obj: Object | None) -> set[str]:
        """Add, replace or remove (None) a GatewayClass; an invalid one is not ours."""
        if name not in INGRESS_CLASSES:
            return set()
        is_foreign = obj is not None and not _is_our_class(obj)
        if is_foreign is (name in self._foreign):
            return set()
        (self._foreign.add if is_foreign else self._foreign.discard)(name)
        return {key for key, each in self._gateways.items() if each.gateway_class == name}

    def namespace_changed(self, name: str) -> set[str]:
        """The labels of a namespace have changed: a Gateway may admit its ListenerSets or not."""
        return {each.gateway for key, each in self._sets.items() if key.namespace == name}

    def _is_ours(self, gateway: GatewayListeners) -> bool:
        name = gateway.gateway_class
        return name in INGRESS_CLASSES and name not in self._foreign


def _is_our_class(obj: Object) -> bool:
    try:
        return read_controller(obj).partition("/")[0] == CONTROLLER_DOMAIN
    except TranslateError:
        return False
