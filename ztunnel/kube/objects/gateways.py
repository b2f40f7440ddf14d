# SPDX-License-Identifier: Apache-2.0
"""Reads the ports of ingress gateways from Gateways and ListenerSets. Pure.

Only what nodes need; `ztunnel.l7.api.gateway` parses these objects completely. What is invalid
contributes no port: the port stays captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ztunnel.kube.objects.fields import Fields, Object, TranslateError, key_of
from ztunnel.kube.objects.l7_kinds import GATEWAY_GROUP
from ztunnel.mesh.model import GatewayPort
from ztunnel.mesh.ports import MESH
from ztunnel.mesh.selectors import Selector, SelectorError, from_object, selects

CONTROLLER_DOMAIN = "ztunnel.dev"  # of the controllerName of our GatewayClasses
MAX_LISTENERS = 256  # read from one object; Gateway API allows 64
# HTTPS: HTTP/3 uses the same port of UDP
_PROTOCOLS = {
    "HTTP": ("TCP",),
    "HTTPS": ("TCP", "UDP"),
    "TLS": ("TCP",),
    "TCP": ("TCP",),
    "UDP": ("UDP",),
}


class ListenersFrom(StrEnum):
    """Whose ListenerSets may attach: `allowedListeners.namespaces.from`."""

    NONE = "None"
    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


@dataclass(frozen=True, slots=True)
class GatewayListeners:
    """The ports of a Gateway's own listeners, and which ListenerSets may add some."""

    namespace: str
    gateway_class: str
    ports: tuple[GatewayPort, ...] = ()
    allowed: ListenersFrom = ListenersFrom.NONE
    selector: Selector = ()

    def admits(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether ListenerSets of a namespace with these labels may attach."""
        match self.allowed:
            case ListenersFrom.ALL:
                return True
            case ListenersFrom.SAME:
                return namespace == self.namespace
            case ListenersFrom.SELECTOR:
                return selects((self.selector,), labels)
            case ListenersFrom.NONE:
                return False


@dataclass(frozen=True, slots=True)
class ListenerSet:
    """The ports of a ListenerSet. `gateway`: `namespace/name` of its parent, empty for none."""

    namespace: str
    gateway: str
    ports: tuple[GatewayPort, ...] = ()


def read_gateway_listeners(obj: Object) -> GatewayListeners:
    """Parse the listeners of a Gateway of any class."""
    key = key_of(obj)
    spec = Fields(obj, f"{key}: ").mapping("spec")
    allowed, selector = _allowed(spec)
    return GatewayListeners(
        key.namespace, spec.string("gatewayClassName"), _ports(spec), allowed, selector
    )


def read_listener_set(obj: Object) -> ListenerSet:
    """Parse a ListenerSet."""
    key = key_of(obj)
    spec = Fields(obj, f"{key}: ").mapping("spec")
    parent = spec.mapping("parentRef")
    group = parent.string("group") if parent.has("group") else GATEWAY_GROUP
    gateway = ""
    if (group, parent.string("kind") or "Gateway") == (GATEWAY_GROUP, "Gateway"):
        gateway = f"{parent.string('namespace') or key.namespace}/{parent.string('name')}"
    return ListenerSet(key.namespace, gateway, _ports(spec))


def read_controller(obj: Object) -> str:
    """The controllerName of a GatewayClass."""
    return Fields(obj, f"{key_of(obj)}: ").mapping("spec").string("controllerName")


def _allowed(spec: Fields) -> tuple[ListenersFrom, Selector]:
    try:
        namespaces = spec.mapping("allowedListeners").mapping("namespaces")
        allowed = ListenersFrom(namespaces.string("from") or ListenersFrom.NONE)
        selector: Selector = ()
        if allowed is ListenersFrom.SELECTOR:
            selector = from_object(namespaces.raw("selector"))
    except (ValueError, SelectorError):  # TranslateError is a ValueError
        return ListenersFrom.NONE, ()
    return allowed, selector


def _ports(spec: Fields) -> tuple[GatewayPort, ...]:
    found: dict[GatewayPort, None] = {}
    try:
        for number, listener in enumerate(spec.mappings("listeners")):
            if number == MAX_LISTENERS:
                break
            found.update(dict.fromkeys(_of_listener(listener)))
    except TranslateError:  # an entry is not an object
        return ()
    return tuple(sorted(found))


def _of_listener(listener: Fields) -> Iterator[GatewayPort]:
    try:
        port = listener.port("port")
        protocols = _PROTOCOLS.get(listener.string("protocol"), ())
    except TranslateError:
        return
    if port is not None and port not in MESH:
        for protocol in protocols:
            yield GatewayPort(port, protocol)
