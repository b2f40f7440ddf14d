# SPDX-License-Identifier: Apache-2.0
"""The policies of the cluster, kept in step with the objects and with the services they are for.

A policy with targetRefs selects what its services select: by their labels, so that a new pod is
covered before it is an endpoint; a service without a selector by the pods behind its endpoints.
A part of the mirror.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import msgspec

from ztunnel.kube.objects.fields import Object, ObjectKey
from ztunnel.kube.objects.policies import (
    ParsedPolicy,
    read_authorization_policy,
    read_peer_authentication,
)
from ztunnel.kube.objects.translation import ServiceSpec
from ztunnel.kube.view.tracked_map import TrackedMap
from ztunnel.mesh.model import Service
from ztunnel.mesh.policy.model import AuthorizationPolicy, Policy, Selection


class PolicyBook:
    """All policies by key. `spec` and `joined` know a service by `namespace/name`."""

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
        self._written: dict[str, ParsedPolicy] = {}  # those with targets
        self._aimed_at: dict[str, set[str]] = defaultdict(set)  # service → keys of policies
        self._stale: set[str] = set()

    def put_authorization(self, key: ObjectKey, obj: Object) -> str:
        """Take in an AuthorizationPolicy; why it was refused."""
        written = read_authorization_policy(obj, self.root_namespace)
        name = written.policy.key
        self._unaim(name)
        if written.targets:
            self._written[name] = written
            for service in written.targets:
                self._aimed_at[service].add(name)
            self._stale.add(name)
        else:
            self._policies.put(name, written.policy)
        return _complaint(written.policy.refused)

    def put_peer(self, key: ObjectKey, obj: Object) -> str:
        """Take in a PeerAuthentication; why it was refused."""
        policy = read_peer_authentication(obj, self.root_namespace)
        self._policies.put(policy.key, policy)
        return _complaint(policy.refused)

    def drop(self, key: ObjectKey) -> None:
        """Forget a policy."""
        name = f"{key.kind}/{key.namespace}/{key.name}"
        self._unaim(name)
        self._policies.put(name, None)

    def service_changed(self, service: str) -> None:
        """A service selects other pods, has other endpoints, came or went."""
        self._stale |= self._aimed_at.get(service, set())

    def drain(self) -> tuple[tuple[Policy, ...], tuple[str, ...]]:
        """Those that are new or other than at the last drain, and the keys of what is gone."""
        self._join()
        return self._policies.drain()

    def all(self) -> Iterator[Policy]:
        """Every policy as now."""
        self._join()
        return iter(self._policies)

    def _unaim(self, name: str) -> None:
        self._stale.discard(name)
        written = self._written.pop(name, None)
        for service in written.targets if written else ():
            self._aimed_at[service].discard(name)
            if not self._aimed_at[service]:
                del self._aimed_at[service]

    def _join(self) -> None:
        for name in sorted(self._stale):
            self._policies.put(name, self._aimed(self._written[name]))
        self._stale.clear()

    def _aimed(self, written: ParsedPolicy) -> AuthorizationPolicy:
        selections: list[Selection] = []
        warnings = list(written.policy.warnings)
        for service in written.targets:
            found = self._behind(service)
            selections += found
            if not found:
                warnings.append(f"Service {service} has no selector and no endpoint: takes nothing")
        return msgspec.structs.replace(
            written.policy, selections=tuple(selections), warnings=tuple(warnings)
        )

    def _behind(self, service: str) -> list[Selection]:
        spec, joined = self._spec(service), self._joined(service)
        if spec is not None and spec.selector and not spec.external:
            return [Selection(spec.namespace, spec.selector)]
        uids = {endpoint.workload for endpoint in joined.endpoints} if joined else set()
        return [Selection(uid=uid) for uid in sorted(uids - {""})]


def _complaint(refused: str) -> str:
    return f"refused, and the safe thing is done instead: {refused}" if refused else ""
