# SPDX-License-Identifier: Apache-2.0
"""The policies of the cluster, updated with their objects and their target services. A part of the
view.

A policy with targetRefs selects the pods of its services: by the labels of the service's selector,
so that a new pod is covered before it is an endpoint, or, without a selector, by the endpoints.
A service that has a usable waypoint is left out: the waypoint enforces the policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import msgspec

from ztunnel.kube.objects.fields import Object, ObjectKey
from ztunnel.kube.objects.policies import (
    MAX_REASON_CHARS,
    ParsedPolicy,
    deny_workload,
    read_authorization_policy,
    read_peer_authentication,
    replace_oversized,
)
from ztunnel.kube.objects.translation import ServiceSpec
from ztunnel.kube.view.tracked_map import TrackedMap
from ztunnel.mesh.model import Service
from ztunnel.mesh.policy.model import AuthorizationPolicy, Policy, Selection


class PolicyIndex:
    """All policies by key. `spec` and `joined` find a service by `namespace/name`."""

    def __init__(
        self,
        root_namespace: str,
        spec: Callable[[str], ServiceSpec | None],
        joined: Callable[[str], Service | None],
    ) -> None:
        self.root_namespace = root_namespace
        self._spec = spec
        self._joined = joined
        self._policies: TrackedMap[Policy] = TrackedMap()
        self._targeted: dict[str, ParsedPolicy] = {}  # policies with targets, by key
        self._policies_of: dict[str, set[str]] = defaultdict(set)  # service → keys of policies
        self._stale: set[str] = set()

    def put_authorization(self, key: ObjectKey, obj: Object) -> str:
        """Add or replace an AuthorizationPolicy; returns why it is rejected, or ""."""
        parsed = read_authorization_policy(obj, self.root_namespace)
        name = parsed.policy.key
        self._remove_targets(name)
        if parsed.targets:
            self._targeted[name] = parsed
            for service in parsed.targets:
                self._policies_of[service].add(name)
            self._stale.add(name)
        else:
            self._policies.put(name, parsed.policy)
        return _rejection(parsed.policy.refused)

    def put_peer(self, key: ObjectKey, obj: Object) -> str:
        """Add or replace a PeerAuthentication; returns why it is rejected, or ""."""
        policy = read_peer_authentication(obj, self.root_namespace)
        self._policies.put(policy.key, policy)
        return _rejection(policy.refused)

    def drop(self, key: ObjectKey) -> None:
        """Remove a policy."""
        name = f"{key.kind}/{key.namespace}/{key.name}"
        self._remove_targets(name)
        self._policies.put(name, None)

    def deny_workload(self, namespace: str, pod: str, uid: str, reason: str) -> None:
        """Deny all connections to a pod; with an empty reason, no longer."""
        policy = deny_workload(namespace, pod, uid, reason)
        self._policies.put(policy.key, policy if reason else None)

    def set_own(self, key: str, policy: Policy | None) -> None:
        """Set a policy that the view itself derives; None removes it."""
        self._policies.put(key, policy)

    def service_changed(self, service: str) -> None:
        """The selector or the endpoints of a service have changed, or it was added or removed."""
        self._stale |= self._policies_of.get(service, set())

    def drain(self) -> tuple[tuple[Policy, ...], tuple[str, ...]]:
        """The policies that changed since the last drain, and the keys of removed ones."""
        self._join()
        return self._policies.drain()

    def all(self) -> Iterator[Policy]:
        """All policies."""
        self._join()
        return iter(self._policies)

    def _remove_targets(self, name: str) -> None:
        self._stale.discard(name)
        parsed = self._targeted.pop(name, None)
        for service in parsed.targets if parsed else ():
            self._policies_of[service].discard(name)
            if not self._policies_of[service]:
                del self._policies_of[service]

    def _join(self) -> None:
        for name in sorted(self._stale):
            self._policies.put(name, self._with_selections(self._targeted[name]))
        self._stale.clear()

    def _with_selections(self, parsed: ParsedPolicy) -> Policy:
        selections: list[Selection] = []
        warnings = list(parsed.policy.warnings)
        elsewhere = [
            f"Service {service} by waypoint {waypoint}"
            for service in parsed.targets
            if (waypoint := self._waypoint_of(service))
        ]
        if elsewhere:
            text = f"enforced by waypoints, not by nodes: {', '.join(elsewhere)}"
            if len(elsewhere) == len(parsed.targets):
                return _at_waypoint(parsed.policy, text)
            warnings.append(text)
        for service in parsed.targets:
            if self._waypoint_of(service):
                continue
            of_service = self._selections_of(service)
            selections += of_service
            if not of_service:
                warnings.append(
                    f"Service {service} has no selector and no endpoints: it selects no pods"
                )
        resolved = msgspec.structs.replace(
            parsed.policy, selections=tuple(selections), warnings=tuple(warnings)
        )
        return replace_oversized(resolved)

    def _waypoint_of(self, service: str) -> str:
        """The waypoint that enforces the policies of a service; empty if its nodes do."""
        joined = self._joined(service)
        return joined.waypoint if joined is not None and not joined.waypoint_error else ""

    def _selections_of(self, service: str) -> list[Selection]:
        spec, joined = self._spec(service), self._joined(service)
        if spec is not None and spec.selector and not spec.external:
            return [Selection(spec.namespace, spec.selector)]
        uids = {endpoint.workload for endpoint in joined.endpoints} if joined else set()
        return [Selection(uid=uid) for uid in sorted(uids - {""})]


def _at_waypoint(policy: AuthorizationPolicy, text: str) -> AuthorizationPolicy:
    """A policy that has no effect on nodes."""
    return msgspec.structs.replace(
        policy,
        selections=(),
        warnings=(),
        ignored=(policy.ignored or text)[:MAX_REASON_CHARS],
        at_waypoint=True,
    )


def _rejection(refused: str) -> str:
    return f"rejected, fails closed: {refused}" if refused else ""
