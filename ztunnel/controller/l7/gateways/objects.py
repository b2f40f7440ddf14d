# SPDX-License-Identifier: Apache-2.0
"""Applies the objects that run Gateways, repairs them, and deletes those that are not wanted.

    wanted objects ──▶ server-side apply of each that differs from the last apply
                   ──▶ delete objects of other kinds, and of the names of another class

An object of a wanted name that the Gateway does not own is left alone and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from ztunnel.controller.l7.object_client import ObjectClient, Ref, digest_of, mapping, ref_of
from ztunnel.controller.l7.watches import OWNED_KINDS, WORKLOADS, Watches
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.deployment.resources import possible_names
from ztunnel.l7.deployment.settings import MANAGED_BY, MANAGED_LABEL
from ztunnel.l7.objects import L7Object

GATEWAY = "Gateway"
OWNERSHIP_RETRY_S = 15.0  # for a conflicting object to go
REPLACED_RETRY_S = 1.0  # until objects of a Gateway of the same name are deleted
_REJECTED = (400, 403, 422)  # the API server's answers to invalid or forbidden objects

log = structlog.get_logger()


class GatewayObjects:
    """The objects of one Gateway are changed by one thread at a time."""

    def __init__(self, client: ObjectClient, watches: Watches) -> None:
        self._client = client
        self._watches = watches
        self._applied: dict[Ref, tuple[bytes, bytes]] = {}  # digests of the wish and of the result

    def apply(self, gateway: L7Object, uid: str, wanted: list[Object]) -> tuple[str, float | None]:
        """Apply objects in order; returns why one could not be, and when to repeat."""
        for obj in wanted:
            ref = ref_of(obj)
            digest = digest_of(obj)
            if self._applied.get(ref) == (digest, self._fingerprint(ref)):
                continue
            problem, repeat_s = self.check_owner(ref, uid)
            if problem:
                return problem, repeat_s
            try:
                result = self._client.apply(obj)
            except ApiError as error:
                if error.status not in _REJECTED:
                    raise
                return f"{ref}: the API server rejects it: {error.message}", OWNERSHIP_RETRY_S
            if self._applied.get(ref, (b"",))[0] != digest:
                log.info("gateway object applied", kind=ref.kind, gateway=f"{ref[1]}/{ref[2]}")
            else:
                log.info("gateway object repaired", kind=ref.kind, gateway=f"{ref[1]}/{ref[2]}")
            self._applied[ref] = digest, _content(result)
        self.prune(gateway.namespace, gateway.name, {ref_of(obj) for obj in wanted})
        return "", None

    def check_owner(self, ref: Ref, uid: str) -> tuple[str, float]:
        """Why an object must not be applied; empty if it does not exist or the Gateway owns it."""
        existing = self._client.get(ref)
        if existing is None:
            return "", 0.0
        owners = existing["metadata"].get("ownerReferences") or []
        if any(owner.get("uid") == uid for owner in owners):
            return "", 0.0
        if is_managed(existing) and any(owner.get("kind") == GATEWAY for owner in owners):
            self._client.delete(existing)  # of a Gateway that was deleted and created again
            return f"{ref}: belongs to an earlier Gateway; being replaced", REPLACED_RETRY_S
        return (
            f"{ref} exists and does not belong to the Gateway; hint: delete it, or rename the "
            "Gateway"
        ), OWNERSHIP_RETRY_S

    def exist(self, namespace: str, gateway: str) -> bool:
        """Whether there are objects that may belong to the Gateway."""
        refs = (
            Ref(kind, namespace, name)
            for name in possible_names(gateway)
            for kind in (*OWNED_KINDS, "Service")
        )
        found = ((ref, self._watches.of(ref)) for ref in refs)
        return any(
            obj is not None and (ref.kind != "Service" or is_managed(obj)) for ref, obj in found
        )

    def prune(self, namespace: str, gateway: str, wanted: set[Ref]) -> None:
        """Delete the Gateway's objects that are not wanted.

        What serves now is deleted once what replaces it is ready: a change between Deployment and
        DaemonSet, or between classes of ingress gateways, interrupts nothing.
        """
        if any(not self._is_ready(ref) for ref in wanted if ref.kind in WORKLOADS):
            wanted = wanted | {
                Ref(kind, namespace, name)
                for name in possible_names(gateway)
                for kind in (*WORKLOADS, "ServiceAccount", "Service")
            }
        for name in possible_names(gateway):
            for kind in (*OWNED_KINDS, "Service"):
                ref = Ref(kind, namespace, name)
                if ref not in wanted and self._watches.of(ref) is not None:
                    self._delete(ref, gateway)

    def delete_secret(self, ref: Ref, gateway: str) -> None:
        """Delete a Secret with certificates, if it belongs to the Gateway, a name."""
        self._delete(ref, gateway)

    def _delete(self, ref: Ref, gateway: str) -> None:
        if ref.kind == "Service" and not is_managed(self._watches.of(ref) or {"metadata": {}}):
            return
        existing = self._client.get(ref)
        if existing is not None and is_managed(existing) and _is_owned_by(existing, gateway):
            self._client.delete(existing)
            log.info("gateway object deleted", kind=ref.kind, gateway=f"{ref[1]}/{gateway}")
        self._applied.pop(ref, None)

    def _is_ready(self, ref: Ref) -> bool:
        workload = self._watches.of(ref)
        return ready_pods(workload) > 0 or _is_scaled_to_zero(workload)

    def _fingerprint(self, ref: Ref) -> bytes:
        """Of an object as last seen: what others may have changed."""
        found = self._watches.of(ref)
        return _content(found) if found is not None else b""


def ready_pods(workload: Object | None) -> int:
    """How many pods of a Deployment or DaemonSet are ready."""
    status = mapping((workload or {}).get("status"))
    ready = status.get("readyReplicas", status.get("numberReady"))
    return ready if isinstance(ready, int) else 0


def wanted_pods(workload: Object | None) -> int:
    """How many pods a Deployment or DaemonSet is to have; of an unknown Deployment 1."""
    obj = workload or {}
    wanted = mapping(obj.get("status")).get("desiredNumberScheduled")
    if obj.get("kind") != "DaemonSet":
        wanted = mapping(obj.get("spec")).get("replicas", 1)
    return wanted if isinstance(wanted, int) else 0


def _is_scaled_to_zero(workload: Object | None) -> bool:
    if workload is None or wanted_pods(workload) > 0:
        return False
    generation = workload["metadata"].get("generation")  # the status is of this generation
    return bool(mapping(workload.get("status")).get("observedGeneration") == generation)


def is_managed(obj: Object) -> bool:
    """Whether the controller has created an object."""
    return mapping(obj["metadata"].get("labels")).get(MANAGED_LABEL) == MANAGED_BY


def _is_owned_by(obj: Object, gateway: str) -> bool:
    owners = obj["metadata"].get("ownerReferences") or []
    return any((owner.get("kind"), owner.get("name")) == (GATEWAY, gateway) for owner in owners)


def _content(obj: Mapping[str, Any]) -> bytes:
    """A digest of what an apply sets. Of a ServiceAccount the watch has only the name."""
    if obj["kind"] == "ServiceAccount":
        return b"exists"
    labels = obj["metadata"].get("labels") or {}
    return digest_of([labels, obj.get("spec")])
