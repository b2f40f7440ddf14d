# SPDX-License-Identifier: Apache-2.0
"""Reconciles a Gateway of a waypoint class: applies what runs it, and writes its status.

    Gateway ──▶ l7.deployment ──▶ server-side apply of each object that differs from the last apply
                              ──▶ delete owned objects that are not wanted any more
            ──▶ l7.status     ──▶ apply of the status, if it differs

An object of the wanted name that the Gateway does not own is left alone and reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from ztunnel.controller.l7.gateway_classes import GatewayClasses
from ztunnel.controller.l7.object_client import ObjectClient, Ref, ref_of
from ztunnel.controller.l7.watches import OWNED_KINDS, Watches
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.deployment.resources import (
    LiveState,
    gateway_problems,
    gateway_resources,
    parameters_name,
)
from ztunnel.l7.deployment.settings import MANAGED_BY, MANAGED_LABEL, DeploymentSettings
from ztunnel.l7.objects import L7Object, l7_object
from ztunnel.l7.problems import Severity
from ztunnel.l7.status.conditions import has_conditions
from ztunnel.l7.status.facts import GatewayFacts, ip_addresses
from ztunnel.l7.status.gateway import gateway_status

KIND = "Gateway"
PARAMETERS_POLL_S = 30.0  # ConfigMaps of parametersRef are not watched
OWNERSHIP_RETRY_S = 15.0  # for a conflicting object to go
REPLACED_RETRY_S = 1.0  # until objects of a Gateway of the same name are deleted
_REJECTED = (400, 403, 422)  # the API server's answers to invalid or forbidden objects

log = structlog.get_logger()


class Gateways:
    """One Gateway is reconciled by one thread at a time."""

    def __init__(
        self,
        client: ObjectClient,
        watches: Watches,
        classes: GatewayClasses,
        settings: DeploymentSettings,
        rejected: Callable[[str], str],
    ) -> None:
        """`rejected`: Envoy's message if it rejects the listener of a Gateway, else empty."""
        self._client = client
        self._watches = watches
        self._classes = classes
        self._settings = settings
        self._rejected = rejected
        self._applied: dict[Ref, tuple[bytes, bytes]] = {}  # digests of the wish and of the result

    def reconcile(self, key: str) -> float | None:
        """Reconcile `namespace/name`; returns in how many seconds to repeat. Raises ApiError."""
        namespace, _, name = key.partition("/")
        obj = self._watches.get(KIND, namespace, name)
        gateway = _parsed(obj)
        class_name = str(gateway.spec.get("gatewayClassName") or "") if gateway else ""
        if obj is None or gateway is None or not self._classes.is_ours(class_name):
            self._prune_all(namespace, name)
            return None
        live = self._live_state(obj, gateway)
        problems = gateway_problems(gateway, self._settings, live)
        conflict, repeat_s = "", None
        if not any(problem.severity is Severity.ERROR for problem in problems):
            wanted = gateway_resources(gateway, self._settings, live)
            conflict, repeat_s = self._apply_all(gateway, live.uid, wanted)
        if parameters_name(gateway):
            repeat_s = min(repeat_s or PARAMETERS_POLL_S, PARAMETERS_POLL_S)
        facts = GatewayFacts(
            problems=problems,
            addresses=ip_addresses(self._addresses(namespace, name)),
            wanted=live.replicas,
            ready=self._ready(namespace, name),
            conflict=conflict or self._rejected(key),
            detail=self._failure(namespace, name),
        )
        self._write_status(obj, gateway, facts)
        return repeat_s

    def is_ready(self, key: str) -> bool:
        """Whether a pod of the Gateway `namespace/name` is ready."""
        namespace, _, name = key.partition("/")
        return self._ready(namespace, name) > 0

    def _live_state(self, obj: Object, gateway: L7Object) -> LiveState:
        parameters: Mapping[str, str] | None = {}
        name = parameters_name(gateway)
        if name:
            found = self._client.get(Ref("ConfigMap", gateway.namespace, name))
            parameters = _texts(found.get("data")) if found is not None else None
        deployment = self._watches.get("Deployment", gateway.namespace, gateway.name) or {}
        replicas = _mapping(deployment.get("spec")).get("replicas")
        return LiveState(
            uid=str(obj["metadata"].get("uid") or ""),
            parameters=parameters,
            replicas=replicas if isinstance(replicas, int) else 1,
        )

    def _apply_all(
        self, gateway: L7Object, uid: str, wanted: list[Object]
    ) -> tuple[str, float | None]:
        """Apply the objects in order; returns why one could not be, and when to repeat."""
        for obj in wanted:
            ref = ref_of(obj)
            digest = _digest(obj)
            if self._applied.get(ref) == (digest, self._fingerprint(ref)):
                continue
            problem, repeat_s = self._check_owner(ref, uid)
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
        self._prune(gateway.namespace, gateway.name, {obj["kind"] for obj in wanted})
        return "", None

    def _check_owner(self, ref: Ref, uid: str) -> tuple[str, float]:
        """Why an object must not be applied; empty if it does not exist or the Gateway owns it."""
        existing = self._client.get(ref)
        if existing is None:
            return "", 0.0
        owners = existing["metadata"].get("ownerReferences") or []
        if any(owner.get("uid") == uid for owner in owners):
            return "", 0.0
        if _is_managed(existing) and any(owner.get("kind") == KIND for owner in owners):
            self._client.delete(existing)  # of a Gateway that was deleted and created again
            return f"{ref}: belongs to an earlier Gateway; being replaced", REPLACED_RETRY_S
        return (
            f"{ref} exists and does not belong to the Gateway; hint: delete it, or rename the "
            "Gateway"
        ), OWNERSHIP_RETRY_S

    def _prune_all(self, namespace: str, name: str) -> None:
        """Delete what ran a Gateway that is gone, or belongs to another class now.

        Kubernetes' garbage collector does so for deleted Gateways; this is for a change of class.
        """
        if not self._watches.is_listed(KIND) or not self._watches.is_listed("GatewayClass"):
            return
        current = self._client.get(Ref(KIND, namespace, name))
        class_name = _mapping((current or {}).get("spec")).get("gatewayClassName")
        if current is None or not self._classes.is_ours(str(class_name)):
            self._prune(namespace, name, set(), services=True)

    def _prune(
        self, namespace: str, name: str, wanted: set[str], *, services: bool = False
    ) -> None:
        for kind in (*OWNED_KINDS, "Service") if services else OWNED_KINDS:
            ref = Ref(kind, namespace, name)
            known = self._watches.of(ref) if kind not in wanted else None
            if known is None or (kind == "Service" and not _is_managed(known)):
                continue
            existing = self._client.get(ref)
            if existing is not None and _is_managed(existing) and _has_gateway_owner(existing):
                self._client.delete(existing)
                log.info("gateway object deleted", kind=kind, gateway=f"{namespace}/{name}")
            self._applied.pop(ref, None)

    def _fingerprint(self, ref: Ref) -> bytes:
        """Of an object as last seen: what others may have changed."""
        found = self._watches.of(ref)
        return _content(found) if found is not None else b""

    def _addresses(self, namespace: str, name: str) -> list[str]:
        service = self._watches.get("Service", namespace, name)
        if service is None or not _is_managed(service):
            return []
        spec = _mapping(service.get("spec"))
        found = spec.get("clusterIPs") or [spec.get("clusterIP")]
        return [each for each in found if isinstance(each, str) and each not in ("", "None")]

    def _ready(self, namespace: str, name: str) -> int:
        deployment = self._watches.get("Deployment", namespace, name) or {}
        ready = _mapping(deployment.get("status")).get("readyReplicas")
        return ready if isinstance(ready, int) else 0

    def _failure(self, namespace: str, name: str) -> str:
        """Why the Deployment has no pods, for example because admission rejects them."""
        deployment = self._watches.get("Deployment", namespace, name) or {}
        conditions = _mapping(deployment.get("status")).get("conditions")
        for each in conditions if isinstance(conditions, list) else ():
            found = _mapping(each)
            state = found.get("type"), found.get("status")
            if state in (("ReplicaFailure", "True"), ("Progressing", "False")):
                return str(found.get("message") or "")
        return ""

    def _write_status(self, obj: Object, gateway: L7Object, facts: GatewayFacts) -> None:
        before = _mapping(obj.get("status"))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = gateway_status(gateway, facts, before, now)
        if not _same_status(status, before):
            self._client.apply_status(obj, status, force=True)
        for condition in status["conditions"]:
            if condition["status"] == "False" and condition["reason"] in _EVENT_REASONS:
                self._client.emit_event(obj, "MeshGatewayInvalid", condition["message"])


_EVENT_REASONS = frozenset({"InvalidParameters", "UnsupportedAddress", "ListenersNotValid"})


def _same_status(status: Object, before: Object) -> bool:
    listeners = {each["name"]: each for each in status["listeners"]}
    known = {each.get("name"): each for each in before.get("listeners") or []}
    return (
        status["addresses"] == (before.get("addresses") or [])
        and has_conditions(before.get("conditions"), status["conditions"])
        and listeners.keys() == known.keys()
        and all(
            has_conditions(known[name].get("conditions"), each["conditions"])
            and each["attachedRoutes"] == known[name].get("attachedRoutes")
            for name, each in listeners.items()
        )
    )


def _parsed(obj: Object | None) -> L7Object | None:
    if obj is None:
        return None
    try:
        return l7_object(obj)
    except ValueError as error:
        log.warning("gateway invalid", error=str(error))
        return None


def _is_managed(obj: Object) -> bool:
    return _mapping(obj["metadata"].get("labels")).get(MANAGED_LABEL) == MANAGED_BY


def _has_gateway_owner(obj: Object) -> bool:
    owners = obj["metadata"].get("ownerReferences") or []
    return any(owner.get("kind") == KIND for owner in owners)


def _digest(value: Any) -> bytes:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).digest()


def _content(obj: Object) -> bytes:
    """A digest of what an apply sets. Of a ServiceAccount the watch has only the name."""
    if obj["kind"] == "ServiceAccount":
        return b"exists"
    labels = obj["metadata"].get("labels") or {}
    return _digest([labels, obj.get("spec")])


def _texts(value: object) -> dict[str, str]:
    return {key: text for key, text in _mapping(value).items() if isinstance(text, str)}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
