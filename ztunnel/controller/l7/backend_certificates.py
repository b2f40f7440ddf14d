# SPDX-License-Identifier: Apache-2.0
"""Publishes the certificates that BackendTLSPolicies refer to, in an annotation of the policy.

    policy, ConfigMaps ──▶ l7.traffic.backend_ca ──▶ server-side apply, if it differs

Nodes do not read ConfigMaps. Policies whose Services use no waypoint get no annotation: another
implementation may be responsible for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from ztunnel.controller.l7.namespace_rate import NamespaceRate
from ztunnel.controller.l7.object_client import ObjectClient, Ref, ref_of
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.objects.l7_kinds import BACKEND_TLS_POLICY, CA_CERTIFICATES_ANNOTATION
from ztunnel.l7.objects import L7Object, l7_object
from ztunnel.l7.traffic.backend_ca import (
    Authorities,
    RefError,
    config_map_names,
    has_certificate_refs,
    read_authorities,
)

FIELD_MANAGER = "ztunnel-backend-certificates"
CONFIG_MAPS_POLL_S = 30.0  # of ConfigMaps that the controller may not watch

log = structlog.get_logger()


class BackendCertificates:
    """One policy is reconciled by one thread at a time."""

    def __init__(
        self,
        client: ObjectClient,
        watches: Watches,
        is_enforced: Callable[[L7Object], bool],
        on_change: Callable[[Ref], None],
    ) -> None:
        """`is_enforced`: whether a waypoint applies a policy. `on_change`: the errors changed."""
        self._client = client
        self._watches = watches
        self._is_enforced = is_enforced
        self._on_change = on_change
        self._rate = NamespaceRate(time.monotonic)  # of polls
        self._errors: dict[Ref, tuple[RefError, ...]] = {}  # of those that are published

    def errors(self, ref: Ref) -> tuple[RefError, ...] | None:
        """Why references of a policy are invalid; None if they have not been read yet."""
        return self._errors.get(ref)

    def unread(self) -> list[Ref]:
        """The policies with references that waypoints apply, and that have not been read yet."""
        return [
            ref_of(obj)
            for obj in self._watches.objects(BACKEND_TLS_POLICY)
            if ref_of(obj) not in self._errors and self._wanted(obj) is not None
        ]

    def users(self, config_map: Ref) -> list[Ref]:
        """The policies that refer to a ConfigMap."""
        if config_map.kind != "ConfigMap":
            return []
        found = []
        for obj in self._watches.objects(BACKEND_TLS_POLICY):
            policy = _parsed(obj) if ref_of(obj).namespace == config_map.namespace else None
            if policy is not None and config_map.name in config_map_names(policy):
                found.append(ref_of(obj))
        return found

    def reconcile(self, ref: Ref) -> float | None:
        """Publish, or remove; returns in how many seconds to repeat. Raises ApiError."""
        obj = self._watches.of(ref)
        policy = self._wanted(obj) if obj is not None else None
        if obj is None or policy is None:
            self._errors.pop(ref, None)
            if obj is None:
                return None
            self._write(obj, "")
            return CONFIG_MAPS_POLL_S if _has_refs(obj) else None
        names = config_map_names(policy)
        found = self._read(policy, names)
        self._write(obj, found.pem)
        if self._errors.get(ref) != found.errors:
            self._errors[ref] = found.errors
            self._on_change(ref)
        delays_s = [self._rate.reserve_s(ref.namespace) for _ in names]
        return CONFIG_MAPS_POLL_S + max(delays_s, default=0.0)

    def _wanted(self, obj: Object) -> L7Object | None:
        """The policy, if its references are to be published."""
        policy = _parsed(obj)
        is_wanted = policy and has_certificate_refs(policy) and self._is_enforced(policy)
        return policy if is_wanted else None

    def _read(self, policy: L7Object, names: list[str]) -> Authorities:
        found = {}
        for name in names:
            config_map = self._client.get(Ref("ConfigMap", policy.namespace, name))
            found[name] = None if config_map is None else config_map.get("data") or {}
        return read_authorities(policy, found)

    def _write(self, obj: Object, pem: str) -> None:
        known = (obj["metadata"].get("annotations") or {}).get(CA_CERTIFICATES_ANNOTATION)
        if (known or "") == pem and (pem or known is None):
            return
        if self._client.set_annotation(obj, CA_CERTIFICATES_ANNOTATION, pem, FIELD_MANAGER):
            event = "backend certificates published" if pem else "backend certificates removed"
            log.info(event, policy=str(ref_of(obj)))


def _parsed(obj: Object) -> L7Object | None:
    try:
        return l7_object(obj)
    except ValueError:
        return None


def _has_refs(obj: Object) -> bool:
    policy = _parsed(obj)
    return policy is not None and has_certificate_refs(policy)
