# SPDX-License-Identifier: Apache-2.0
"""Pods that only their waypoints may connect to (ztunnel.dev/require-waypoint). A part of the view.

    pod, namespace or service requires it ─▶ DENY policy for the pod: every source but the
                                             identities of the pods of its waypoints

The waypoints of a pod are its own and those of the services that it is an endpoint of. Without one,
all connections are denied. As a policy, the requirement applies to HBONE, plaintext, UDP and the
same-node bypass alike, ends connections that it denies, and is listed with the other policies. The
pods of a Gateway are exempt: the label of a namespace would lock out the clients of its waypoint.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ztunnel.kube.objects.policies import require_waypoint
from ztunnel.mesh.model import Service, Workload
from ztunnel.mesh.policy.model import AuthorizationPolicy

SetPolicy = Callable[[str, AuthorizationPolicy | None], None]


class _ServiceFacts(NamedTuple):
    """What a service contributes to its endpoints. `waypoint` is empty for none."""

    waypoint: str
    required: bool
    endpoints: frozenset[str]  # Workload.uid


class WaypointRequirements:
    """`workload` finds a workload by uid; `set_policy(key, policy)` gets the result."""

    def __init__(self, workload: Callable[[str], Workload | None], set_policy: SetPolicy) -> None:
        self._workload = workload
        self._set_policy = set_policy
        self._required: dict[str, bool] = {}  # by uid; only pods that anything decides for
        self._services: dict[str, _ServiceFacts] = {}  # only those that contribute something
        self._services_of: dict[str, set[str]] = defaultdict(set)  # uid → keys of services
        self._gateways: dict[str, tuple[str, str]] = {}  # uid of a pod → Gateway and identity
        self._pods_of: dict[str, set[str]] = defaultdict(set)  # Gateway → uids of its pods
        self._admitted: dict[str, frozenset[str]] = {}  # uid → Gateways
        self._users: dict[str, set[str]] = defaultdict(set)  # Gateway → uids that admit it
        self._policies: dict[str, str] = {}  # uid → key of its policy
        self._stale: set[str] = set()

    def pod_changed(self, uid: str, *, required: bool | None) -> None:
        """A workload was set or removed. `required`: by its own label or that of its namespace."""
        if required is None:
            self._required.pop(uid, None)
        else:
            self._required[uid] = required
        workload = self._workload(uid)
        is_gateway = workload is not None and workload.gateway != ""
        if is_gateway or uid in self._gateways:
            self._set_gateway(uid, workload if is_gateway else None)
        if required is not None or uid in self._services_of or uid in self._policies:
            self._stale.add(uid)

    def service_changed(self, key: str, service: Service | None, *, required: bool) -> None:
        """A service was joined or removed. `required`: by its own label."""
        before = self._services.pop(key, None)
        facts = _facts(service, required=required)
        if facts is not None:
            self._services[key] = facts
        if before == facts:
            return
        old = before.endpoints if before is not None else frozenset()
        new = facts.endpoints if facts is not None else frozenset()
        for uid in old - new:
            _discard(self._services_of, uid, key)
        for uid in new - old:
            self._services_of[uid].add(key)
        self._stale |= old | new

    def join(self) -> None:
        """Update the policies of the pods that changed."""
        for uid in sorted(self._stale):
            self._update(uid)
        self._stale.clear()

    def _set_gateway(self, uid: str, pod: Workload | None) -> None:
        """Set a Gateway's pod; None if it runs none. Its identity is in the policies of users."""
        before = self._gateways.pop(uid, None)
        now = (pod.gateway, pod.identity) if pod is not None else None
        if now is not None:
            self._gateways[uid] = now
        if before == now:
            return
        for each in (before, now):
            if each is not None:
                self._stale |= self._users.get(each[0], set())
        if before is not None:
            _discard(self._pods_of, before[0], uid)
        if now is not None:
            self._pods_of[now[0]].add(uid)

    def _update(self, uid: str) -> None:
        workload = self._workload(uid)
        is_required = workload is not None and not workload.gateway and self._is_required(uid)
        admitted = frozenset(self._admitted_gateways(workload)) if is_required else frozenset()
        before = self._admitted.pop(uid, frozenset())
        for gateway in before - admitted:
            _discard(self._users, gateway, uid)
        for gateway in admitted:
            self._users[gateway].add(uid)
        if admitted:
            self._admitted[uid] = admitted
        old = self._policies.pop(uid, "")
        policy = None
        if workload is not None and is_required:
            policy = require_waypoint(
                workload, tuple(sorted(admitted)), tuple(sorted(self._identities(admitted)))
            )
            self._policies[uid] = policy.key
        if old and (policy is None or policy.key != old):
            self._set_policy(old, None)
        if policy is not None:
            self._set_policy(policy.key, policy)

    def _is_required(self, uid: str) -> bool:
        own = self._required.get(uid)
        if own is not None:
            return own
        return any(self._services[key].required for key in self._services_of.get(uid, ()))

    def _admitted_gateways(self, workload: Workload | None) -> Iterator[str]:
        if workload is None:
            return
        if workload.waypoint and not workload.waypoint_error:
            yield workload.waypoint
        for key in self._services_of.get(workload.uid, ()):
            if self._services[key].waypoint:
                yield self._services[key].waypoint

    def _identities(self, gateways: frozenset[str]) -> set[str]:
        pods = (uid for gateway in gateways for uid in self._pods_of.get(gateway, ()))
        return {found.identity for uid in pods if (found := self._workload(uid)) is not None}


def _facts(service: Service | None, *, required: bool) -> _ServiceFacts | None:
    """None if the service contributes nothing."""
    if service is None:
        return None
    waypoint = "" if service.waypoint_error else service.waypoint
    if not waypoint and not required:
        return None
    endpoints = frozenset(each.workload for each in service.endpoints) - {""}
    return _ServiceFacts(waypoint, required, endpoints)


def _discard(index: dict[str, set[str]], name: str, member: str) -> None:
    members = index.get(name)
    if members is not None:
        members.discard(member)
        if not members:
            del index[name]
