# SPDX-License-Identifier: Apache-2.0
"""The policies that a waypoint enforces for a destination (as in Istio).

    Service, ServiceEntry   policies of its namespace, for connections to the service
    Gateway                 policies of the waypoint's namespace, for all its connections
    GatewayClass            policies of the root namespace, for all waypoints of the class
    no targetRefs           none: nodes enforce them, with or without a selector

A policy with invalid targetRefs applies to all destinations of its namespace and to all waypoints
in it; one of the root namespace applies to all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from ztunnel.l7.api.target_refs import Target, TargetKind
from ztunnel.l7.inputs import Destination, Inputs
from ztunnel.l7.objects import L7Object

_MAX_NAMESPACES = 4096  # in a cache of parsed policies


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


P = TypeVar("P", bound=AttachedPolicy)


class ParsedPolicies(Generic[P]):
    """Parsed objects of a kind, by namespace. Objects that have not changed are not parsed again.

    `parse(object, root namespace)` must be pure.
    """

    def __init__(self, kind: str, parse: Callable[[L7Object, str], P]) -> None:
        self._kind = kind
        self._parse = parse
        self._cache: dict[tuple[str, str], tuple[tuple[L7Object, ...], tuple[P, ...]]] = {}

    def of_namespace(self, inputs: Inputs, namespace: str) -> tuple[P, ...]:
        """Return the policies of a namespace, ordered by name."""
        objects = inputs.store.of_namespace(self._kind, namespace)
        key = namespace, inputs.settings.root_namespace
        known = self._cache.get(key)
        if known is not None and known[0] is objects:
            return known[1]
        old = {id(obj): policy for obj, policy in zip(*known, strict=True)} if known else {}
        parsed = tuple(
            old.get(id(obj)) or self._parse(obj, inputs.settings.root_namespace) for obj in objects
        )
        if len(self._cache) >= _MAX_NAMESPACES:
            self._cache.clear()
        self._cache[key] = objects, parsed
        return parsed

    def attached(self, inputs: Inputs, destination: Destination) -> Iterator[P]:
        """Yield the policies that the waypoint enforces for a destination."""
        for policy in self._candidates(inputs, destination):
            if _is_attached(policy, inputs, destination):
                yield policy

    def _candidates(self, inputs: Inputs, destination: Destination) -> Iterator[P]:
        namespaces = {
            destination.namespace,
            destination.gateway.partition("/")[0],
            inputs.settings.root_namespace,
        }
        for namespace in sorted(namespaces):
            yield from self.of_namespace(inputs, namespace)


def _is_attached(policy: AttachedPolicy, inputs: Inputs, destination: Destination) -> bool:
    if policy.everywhere:
        return True
    return any(_matches(each, policy.namespace, inputs, destination) for each in policy.targets)


def _matches(target: Target, namespace: str, inputs: Inputs, destination: Destination) -> bool:
    service = destination.service
    gateway_namespace, _, gateway_name = destination.gateway.partition("/")
    if target.kind is TargetKind.GATEWAY:
        return (namespace, target.name) == (gateway_namespace, gateway_name)
    if target.kind is TargetKind.GATEWAY_CLASS:
        gateway = inputs.store.get("Gateway", gateway_namespace, gateway_name)
        return gateway is None or gateway.spec.get("gatewayClassName") == target.name
    if service is None or service.namespace != namespace:
        return False
    if target.kind is TargetKind.SERVICE_ENTRY:
        return service.is_service_entry and service.entry == target.name
    return not service.is_service_entry and service.name == target.name
