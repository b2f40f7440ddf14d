# SPDX-License-Identifier: Apache-2.0
"""The policies that a gateway enforces for a destination (as in Istio).

    Service, ServiceEntry   policies of its namespace, for connections to the service
    Gateway                 policies of the waypoint's namespace, for all its connections
    GatewayClass            policies of the root namespace, for all waypoints of the class
    no targetRefs           of an ingress gateway, for its clients: policies of its namespace and of
                            the root namespace that select its pods; of a waypoint, none: nodes
                            enforce them

A policy with invalid targetRefs applies to all destinations of its namespace and to all waypoints
in it; one of the root namespace applies to all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Generic, Protocol, TypeVar

from ztunnel.l7.api.target_refs import Target, TargetKind
from ztunnel.l7.inputs import Destination, Edge, Inputs
from ztunnel.l7.names import WAYPOINT_CLASSES
from ztunnel.l7.objects import L7Object
from ztunnel.l7.store import L7Store

_MAX_NAMESPACES = 4096  # in a cache of parsed policies


class _Untargeted(Enum):
    """The place of policies without targets."""

    UNTARGETED = 0


_UNTARGETED = _Untargeted.UNTARGETED
_Place = Target | _Untargeted | None


class AttachedPolicy(Protocol):
    """What the selection reads of a policy."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def targets(self) -> tuple[Target, ...]: ...
    @property
    def everywhere(self) -> bool: ...
    @property
    def selector(self) -> dict[str, str]: ...


P = TypeVar("P", bound=AttachedPolicy)


class _Namespace(Generic[P]):
    """The parsed policies of a namespace, and by target. A target's tuple is the identical one as
    before if its policies are."""

    def __init__(
        self, objects: tuple[L7Object, ...], policies: tuple[P, ...], before: _Namespace[P] | None
    ) -> None:
        self.objects = objects
        self.policies = policies
        found: dict[_Place, list[P]] = {}
        for policy in policies:
            for target in (None,) if policy.everywhere else policy.targets or (_UNTARGETED,):
                found.setdefault(target, []).append(policy)
        self._by_target = {target: tuple(each) for target, each in found.items()}
        for target, each in self._by_target.items():
            old = before.of(target) if before is not None else ()
            if len(old) == len(each) and all(a is b for a, b in zip(old, each, strict=True)):
                self._by_target[target] = old

    def of(self, target: _Place) -> tuple[P, ...]:
        """The policies of a target; of None, those that apply to the whole namespace."""
        return self._by_target.get(target, ())


class ParsedPolicies(Generic[P]):
    """Parsed objects of a kind, by namespace. Objects that have not changed are not parsed again.

    `parse(object, root namespace)` must be pure.
    """

    def __init__(self, kind: str, parse: Callable[[L7Object, str], P]) -> None:
        self._kind = kind
        self._parse = parse
        self._cache: dict[tuple[str, str], _Namespace[P]] = {}

    def attached(self, inputs: Inputs, destination: Destination) -> Iterator[P]:
        """Yield the policies that the gateway enforces for a destination."""
        root = inputs.settings.root_namespace
        edge = destination.edge
        seen: set[int] = set()
        for namespace, target in _places(inputs, destination):
            for policy in self._of_target(inputs.store, root, namespace, target):
                if id(policy) not in seen and (
                    target is not _UNTARGETED or _selects(policy.selector, edge)
                ):
                    seen.add(id(policy))
                    yield policy

    def _of_target(
        self, store: L7Store, root: str, namespace: str, target: _Place
    ) -> tuple[P, ...]:
        key = self._kind, root, namespace, target
        return store.derived(key, lambda each: self._namespace(each, root, namespace).of(target))

    def _namespace(self, store: L7Store, root: str, namespace: str) -> _Namespace[P]:
        objects = store.of_namespace(self._kind, namespace)
        known = self._cache.get((namespace, root))
        if known is not None and known.objects is objects:
            return known
        old: dict[int, P] = {}
        if known is not None:
            old = {id(o): p for o, p in zip(known.objects, known.policies, strict=True)}
        policies = tuple(old.get(id(obj)) or self._parse(obj, root) for obj in objects)
        if len(self._cache) >= _MAX_NAMESPACES:
            self._cache.clear()
        found = self._cache[namespace, root] = _Namespace(objects, policies, known)
        return found


def _selects(selector: dict[str, str], edge: Edge | None) -> bool:
    """Whether a policy without targets selects a pod of an ingress gateway."""
    return edge is not None and any(selector.items() <= each.items() for each in edge.labels)


def _places(inputs: Inputs, destination: Destination) -> Iterator[tuple[str, _Place]]:
    """The namespaces and targets whose policies apply to a destination."""
    root = inputs.settings.root_namespace
    service = destination.service
    gateway_namespace, _, gateway_name = destination.gateway.partition("/")
    for namespace in sorted({destination.namespace, gateway_namespace, root}):
        yield namespace, None
        if destination.edge is not None:
            yield namespace, _UNTARGETED
    if service is not None and service.is_service_entry:
        yield service.namespace, Target(TargetKind.SERVICE_ENTRY, service.entry)
    elif service is not None:
        yield service.namespace, Target(TargetKind.SERVICE, service.name)
    yield gateway_namespace, Target(TargetKind.GATEWAY, gateway_name)
    gateway = inputs.store.get("Gateway", gateway_namespace, gateway_name)
    # of a waypoint whose Gateway is not known: any of them
    names = WAYPOINT_CLASSES if gateway is None else (gateway.spec.get("gatewayClassName"),)
    for name in names:
        if isinstance(name, str):
            yield root, Target(TargetKind.GATEWAY_CLASS, name)
