# SPDX-License-Identifier: Apache-2.0
"""The controller's reads and writes of Kubernetes objects. Blocking; every method raises ApiError.

Nothing is cached: decisions on identities are made on the API server's current state.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from ztunnel.controller.csr_policy import Claim, CsrFacts, Pod
from ztunnel.kube.client.request import APPLY_PATCH, CONFLICT, NOT_FOUND, ApiError, send
from ztunnel.kube.constants import FIELD_MANAGER, NODE_EXTRA, ROOTS_CONFIGMAP, ROOTS_KEY
from ztunnel.kube.objects.fields import Object

EXPIRING_ROOTS = "ztunnel.dev/expiring-roots"  # annotation: JSON, SHA-256 → Unix seconds
CSR_PATH = "/apis/certificates.k8s.io/v1/certificatesigningrequests"


class Condition(StrEnum):
    """Types of a CertificateSigningRequest's conditions."""

    APPROVED = "Approved"
    DENIED = "Denied"
    FAILED = "Failed"


class RootsConflictError(Exception):
    """Another field manager owns the roots in a namespace's ConfigMap."""


class KubeClient:
    """Thread-safe."""

    def __init__(self, client: Any) -> None:
        self.client = client

    # Certificate requests

    def csr(self, name: str) -> Object | None:
        """A request; None if it does not exist."""
        return self._get(f"{CSR_PATH}/{name}")

    def pods(self, claim: Claim) -> list[Pod]:
        """The pods on the claim's node with its service account."""
        _, namespace, account = claim.identity
        fields = f"spec.nodeName={claim.node},spec.serviceAccountName={account}"
        path = f"/api/v1/namespaces/{namespace}/pods"
        found = send(self.client, "GET", path, query={"fieldSelector": fields})
        return [_pod(item) for item in found.get("items") or ()]

    def account_exists(self, claim: Claim) -> bool:
        """Whether a claim's service account exists and is not being deleted."""
        _, namespace, account = claim.identity
        found = self._get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}")
        return found is not None and not found["metadata"].get("deletionTimestamp")

    def set_approval(self, csr: Object, condition: Condition, reason: str, message: str) -> Object:
        """Set the condition Approved or Denied; returns the updated request."""
        updated = _with_condition(csr, condition, reason, message)
        found: Object = send(self.client, "PUT", f"{_csr_path(csr)}/approval", body=updated)
        return found

    def set_failed(self, csr: Object, reason: str, message: str) -> None:
        """Mark a request that someone else approved as not to be signed."""
        updated = _with_condition(csr, Condition.FAILED, reason, message)
        send(self.client, "PUT", f"{_csr_path(csr)}/status", body=updated)

    def set_certificate(self, csr: Object, chain_pem: bytes) -> None:
        """Issue the certificate."""
        status = {**(csr.get("status") or {}), "certificate": _encode(chain_pem)}
        send(self.client, "PUT", f"{_csr_path(csr)}/status", body={**csr, "status": status})

    # The CA

    def secret(self, namespace: str, name: str) -> dict[str, bytes] | None:
        """A Secret's data; None if it does not exist."""
        found = self._get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        if found is None:
            return None
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}

    def create_secret(self, namespace: str, name: str, data: Mapping[str, bytes]) -> bool:
        """False if it exists: of several controllers only one creates it."""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "type": "Opaque",
            "data": {key: _encode(value) for key, value in data.items()},
        }
        try:
            send(self.client, "POST", f"/api/v1/namespaces/{namespace}/secrets", body=secret)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            return False
        return True

    # Roots

    def published_roots(self, namespace: str) -> tuple[bytes, dict[str, float]]:
        """The bundle in a namespace's ConfigMap, and when roots of it expire."""
        found = self._get(_roots_path(namespace))
        if found is None:
            return b"", {}
        bundle = (found.get("data") or {}).get(ROOTS_KEY, "").encode()
        annotations = found["metadata"].get("annotations") or {}
        return bundle, _expiring(annotations.get(EXPIRING_ROOTS, ""))

    def apply_roots(
        self, namespace: str, bundle: bytes, expiring: Mapping[str, float], *, force: bool
    ) -> None:
        """Write the bundle to a namespace's ConfigMap by server-side apply.

        Without `force` raises RootsConflictError if another field manager (istiod) owns it.
        """
        metadata: dict[str, Any] = {"name": ROOTS_CONFIGMAP}
        if expiring:
            metadata["annotations"] = {EXPIRING_ROOTS: json.dumps(dict(expiring), sort_keys=True)}
        try:
            send(
                self.client,
                "PATCH",
                _roots_path(namespace),
                query={"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"},
                body={
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": metadata,
                    "data": {ROOTS_KEY: bundle.decode()},
                },
                content_type=APPLY_PATCH,
            )
        except ApiError as error:
            if error.status == CONFLICT and not force:
                raise RootsConflictError(namespace) from error
            raise

    def is_active(self, namespace: str) -> bool:
        """Whether objects can be created in a namespace: it exists and is not terminating."""
        found = self._get(f"/api/v1/namespaces/{namespace}")
        return found is not None and (found.get("status") or {}).get("phase") == "Active"

    def _get(self, path: str) -> Object | None:
        try:
            found: Object = send(self.client, "GET", path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return None
        return found


def csr_facts(csr: Object) -> CsrFacts:
    """The API server sets username and extra from the requester's token."""
    spec = csr["spec"]
    nodes = (spec.get("extra") or {}).get(NODE_EXTRA) or []
    seconds = spec.get("expirationSeconds")
    return CsrFacts(
        user=spec.get("username") or "",
        node=nodes[0] if len(nodes) == 1 else "",
        usages=tuple(spec.get("usages") or ()),
        csr_pem=base64.b64decode(spec["request"]),
        lifetime=timedelta(seconds=seconds) if seconds else None,
    )


def condition_types(csr: Object) -> set[str]:
    """The types of a request's conditions with status True."""
    conditions = (csr.get("status") or {}).get("conditions") or ()
    return {condition["type"] for condition in conditions if condition.get("status") == "True"}


def _with_condition(csr: Object, condition: Condition, reason: str, message: str) -> Object:
    status = csr.get("status") or {}
    added = {
        "type": condition.value,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastUpdateTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return {**csr, "status": {**status, "conditions": [*(status.get("conditions") or ()), added]}}


def _csr_path(csr: Object) -> str:
    return f"{CSR_PATH}/{csr['metadata']['name']}"


def _roots_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/{ROOTS_CONFIGMAP}"


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _pod(item: Object) -> Pod:
    metadata, spec = item["metadata"], item.get("spec") or {}
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        service_account=spec.get("serviceAccountName") or "",
        node=spec.get("nodeName") or "",
        phase=(item.get("status") or {}).get("phase") or "",
        host_network=bool(spec.get("hostNetwork")),
    )


def _expiring(text: str) -> dict[str, float]:
    """The annotation's content; empty if someone else broke it."""
    try:
        return {str(name): float(end) for name, end in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}
