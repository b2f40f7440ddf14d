# SPDX-License-Identifier: Apache-2.0
"""What the signer reads from and writes to the API server. Every call is bounded in time.

Raises kubernetes' ApiException or urllib3's errors; who calls tries again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from ztunnel.controller.csr_policy import Asked, Claim, Pod
from ztunnel.kube.constants import NODE_EXTRA, ROOTS_CONFIGMAP, ROOTS_KEY

TIMEOUT = (5, 15)  # seconds to connect, to answer
MANAGER = "ztunnel-controller"  # field manager of what we apply
RETIRING = "ztunnel.dev/retiring-roots"  # annotation: JSON object, SHA-256 → Unix seconds
_APPLY = "application/apply-patch+yaml"
_NOT_FOUND, _CONFLICT = 404, 409

Csr = Any  # client.V1CertificateSigningRequest; kubernetes has no types


class RootsConflictError(Exception):
    """Somebody else keeps other roots in a namespace's ConfigMap."""


class Cluster:
    """One API server. Thread-safe."""

    def __init__(self, api: Any) -> None:
        self.core = client.CoreV1Api(api)
        self.certificates = client.CertificatesV1Api(api)

    # Requests

    def csr(self, name: str) -> Csr | None:
        """A request as it is now; None when it is gone."""
        return _found(
            lambda: self.certificates.read_certificate_signing_request(
                name, _request_timeout=TIMEOUT
            )
        )

    def pods(self, claim: Claim) -> list[Pod]:
        """The pods that could make a claim true, read now: no cache decides on identities."""
        fields = f"spec.nodeName={claim.node},spec.serviceAccountName={claim.identity[2]}"
        found = self.core.list_namespaced_pod(
            claim.identity.namespace, field_selector=fields, _request_timeout=TIMEOUT
        )
        return [_pod(item) for item in found.items]

    def account_exists(self, claim: Claim) -> bool:
        """Whether a claim's service account is there now, and is not being deleted."""
        _, namespace, name = claim.identity
        found = _found(
            lambda: self.core.read_namespaced_service_account(
                name, namespace, _request_timeout=TIMEOUT
            )
        )
        return found is not None and found.metadata.deletion_timestamp is None

    def judge(self, csr: Csr, kind: str, reason: str, message: str) -> Csr:
        """Add the condition Approved or Denied; the request as it is then."""
        _add_condition(csr, kind, reason, message)
        return self.certificates.replace_certificate_signing_request_approval(
            csr.metadata.name, csr, _request_timeout=TIMEOUT
        )

    def fail(self, csr: Csr, reason: str, message: str) -> None:
        """Say of a request that somebody approved that it will not be signed."""
        _add_condition(csr, "Failed", reason, message)
        self.certificates.replace_certificate_signing_request_status(
            csr.metadata.name, csr, _request_timeout=TIMEOUT
        )

    def deliver(self, csr: Csr, chain_pem: bytes) -> None:
        """Hand out the certificate."""
        csr.status.certificate = base64.b64encode(chain_pem).decode()
        self.certificates.replace_certificate_signing_request_status(
            csr.metadata.name, csr, _request_timeout=TIMEOUT
        )

    # The CA

    def secret(self, namespace: str, name: str) -> dict[str, bytes] | None:
        """A Secret's data; None when there is none."""
        found = _found(
            lambda: self.core.read_namespaced_secret(name, namespace, _request_timeout=TIMEOUT)
        )
        if found is None:
            return None
        return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}

    def create_secret(self, namespace: str, name: str, parts: Mapping[str, bytes]) -> bool:
        """False when another was quicker: the API server lets only one create it."""
        secret = client.V1Secret(
            metadata=client.V1ObjectMeta(name=name),
            type="Opaque",
            data={key: base64.b64encode(value).decode() for key, value in parts.items()},
        )
        try:
            self.core.create_namespaced_secret(namespace, secret, _request_timeout=TIMEOUT)
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            return False
        return True

    # Roots

    def published(self, namespace: str) -> tuple[bytes, dict[str, float]]:
        """The roots in a namespace's ConfigMap, and which of them retire when."""
        found = _found(
            lambda: self.core.read_namespaced_config_map(
                ROOTS_CONFIGMAP, namespace, _request_timeout=TIMEOUT
            )
        )
        if found is None:
            return b"", {}
        bundle = (found.data or {}).get(ROOTS_KEY, "").encode()
        return bundle, _retiring((found.metadata.annotations or {}).get(RETIRING, ""))

    def publish(
        self, namespace: str, bundle: bytes, retiring: Mapping[str, float], *, force: bool
    ) -> None:
        """Put the roots into a namespace's ConfigMap.

        Without `force` what another field manager (istiod) keeps there is left alone:
        ForeignRootsError.
        """
        metadata: dict[str, Any] = {"name": ROOTS_CONFIGMAP}
        if retiring:
            metadata["annotations"] = {RETIRING: json.dumps(dict(retiring), sort_keys=True)}
        try:
            self.core.patch_namespaced_config_map(
                ROOTS_CONFIGMAP,
                namespace,
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": metadata,
                    "data": {ROOTS_KEY: bundle.decode()},
                },
                field_manager=MANAGER,
                force=force,
                _content_type=_APPLY,
                _request_timeout=TIMEOUT,
            )
        except ApiException as error:
            if error.status == _CONFLICT and not force:
                raise RootsConflictError(namespace) from error
            raise

    def is_active(self, namespace: str) -> bool:
        """Whether a namespace is there to stay: in one that ends nothing can be created."""
        found = _found(lambda: self.core.read_namespace(namespace, _request_timeout=TIMEOUT))
        return found is not None and found.status.phase == "Active"


def asked(csr: Csr) -> Asked:
    """A request's facts. The API server sets user and extra from the requester's token."""
    spec = csr.spec
    nodes = (spec.extra or {}).get(NODE_EXTRA) or []
    seconds = spec.expiration_seconds
    return Asked(
        user=spec.username or "",
        node=nodes[0] if len(nodes) == 1 else "",
        usages=tuple(spec.usages or ()),
        csr_pem=base64.b64decode(spec.request),
        lifetime=timedelta(seconds=seconds) if seconds else None,
    )


def conditions(csr: Csr) -> set[str]:
    """The types of a request's true conditions: Approved, Denied, Failed."""
    found = (csr.status.conditions if csr.status else None) or []
    return {condition.type for condition in found if condition.status == "True"}


def _add_condition(csr: Csr, kind: str, reason: str, message: str) -> None:
    now = datetime.now(UTC)
    csr.status = csr.status or client.V1CertificateSigningRequestStatus()
    csr.status.conditions = [
        *(csr.status.conditions or []),
        client.V1CertificateSigningRequestCondition(
            type=kind, status="True", reason=reason, message=message, last_update_time=now
        ),
    ]


def _pod(item: Any) -> Pod:
    return Pod(
        namespace=item.metadata.namespace,
        name=item.metadata.name,
        service_account=item.spec.service_account_name or "",
        node=item.spec.node_name or "",
        phase=(item.status.phase if item.status else "") or "",
        host_network=bool(item.spec.host_network),
    )


def _retiring(text: str) -> dict[str, float]:
    """What the annotation says; nothing when somebody broke it."""
    try:
        found = json.loads(text or "{}")
        return {str(name): float(end) for name, end in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _found(read: Any) -> Any:
    try:
        return read()
    except ApiException as error:
        if error.status != _NOT_FOUND:
            raise
        return None
