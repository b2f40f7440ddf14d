# SPDX-License-Identifier: Apache-2.0
"""Writes the ZtunnelAccepted condition of every policy: one writer for all nodes.

    watch ──▶ current object ──▶ `policy_status.pending_condition` ──▶ apply to its status

Uses server-side apply of that one condition without force: a condition that another controller
(istiod) owns is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from ztunnel.kube.client.informer import Informer
from ztunnel.kube.client.reflector import Reflector, Resource
from ztunnel.kube.client.request import APPLY_PATCH, CONFLICT, NOT_FOUND, ApiError, send
from ztunnel.kube.constants import FIELD_MANAGER
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.objects.policy_status import KINDS, PolicyCondition, evaluate, pending_condition
from ztunnel.kube.sources.api_server import watched_resources

log = structlog.get_logger()


def policy_resources() -> list[Resource]:
    """Those of the agents' resources that have a status condition."""
    return [resource for resource in watched_resources("") if resource.kind in KINDS]


class PolicyWatch:
    """Caches all policies. `on_change(key)` is called from the reflectors' threads."""

    def __init__(self, client: Any, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._informers = {
            resource.kind: Informer(client, resource, self._notify)
            for resource in policy_resources()
        }

    @property
    def reflectors(self) -> list[Reflector]:
        """To be started and stopped by the caller."""
        return [informer.reflector for informer in self._informers.values()]

    def targeted_keys(self) -> list[str]:
        """The keys of AuthorizationPolicies with targetRefs: their effect depends on waypoints."""
        return [
            _key(obj)
            for obj in self._informers["AuthorizationPolicy"].objects()
            if isinstance(spec := obj.get("spec"), dict)
            and (spec.get("targetRefs") or spec.get("targetRef"))
        ]

    def get(self, key: str) -> Object | None:
        """The policy with a key that `on_change` was called with; None if it was deleted."""
        kind, namespace, name = key.split("/")
        return self._informers[kind].get(namespace, name)

    def _notify(self, obj: Object) -> None:
        self._on_change(_key(obj))


def _key(obj: Object) -> str:
    metadata = obj["metadata"]
    return f"{obj['kind']}/{metadata['namespace']}/{metadata['name']}"


class PolicyStatusController:
    """Thread-safe."""

    def __init__(
        self,
        client: Any,
        get_policy: Callable[[str], Object | None],
        evaluate: Callable[[Object], PolicyCondition] = evaluate,
    ) -> None:
        self._evaluate = evaluate
        self._client = client
        self._get_policy = get_policy
        self._paths = {resource.kind: resource.path for resource in policy_resources()}
        self._conflicts: set[str] = set()  # policies whose condition another controller owns

    def reconcile(self, key: str) -> None:
        """Write a policy's condition if it is outdated. On any exception the caller retries."""
        policy = self._get_policy(key)
        if policy is None:
            self._conflicts.discard(key)
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = pending_condition(policy, now, self._evaluate)
        if condition is None:
            return
        try:
            self._apply(policy, condition)
        except ApiError as error:
            if error.status == CONFLICT:
                self._report_conflict(key)
            elif error.status != NOT_FOUND:  # deleted, or a later policy of the same name
                raise
            return
        if condition["status"] == "False":
            log.warning("policy rejected", policy=key, reason=condition["message"])

    def _report_conflict(self, key: str) -> None:
        if key not in self._conflicts:
            self._conflicts.add(key)
            log.info("policy status not written: owned by another controller", policy=key)

    def _apply(self, policy: Object, condition: dict[str, object]) -> None:
        metadata, kind = policy["metadata"], policy["kind"]
        base, _, plural = self._paths[kind].rpartition("/")
        send(
            self._client,
            "PATCH",
            f"{base}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}/status",
            query={"fieldManager": FIELD_MANAGER},
            body={
                "apiVersion": base.removeprefix("/apis/"),
                "kind": kind,
                # the uid makes it fail for a later policy of the same name
                "metadata": {key: metadata[key] for key in ("namespace", "name", "uid")},
                "status": {"conditions": [condition]},
            },
            content_type=APPLY_PATCH,
        )
