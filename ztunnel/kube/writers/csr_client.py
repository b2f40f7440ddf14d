# SPDX-License-Identifier: Apache-2.0
"""Requests certificates from the cluster's controller through certificates.k8s.io.

    create request ──▶ pending ──▶ the controller approves and signs ──▶ certificate, verified here
                          └──────▶ the controller denies ──▶ CsrRejected

The status is polled: a watch per request would need a connection each, and the right to read the
requests of other nodes.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from cryptography import x509

from ztunnel.identity import ca
from ztunnel.identity.csr_signer import (
    CsrRejected,
    IssuedCertificate,
    RejectionReason,
    spiffe_names,
)
from ztunnel.kube.client.request import ApiError, send
from ztunnel.kube.constants import SIGNER_NAME, USAGES

MIN_POLL_INTERVAL_S, MAX_POLL_INTERVAL_S = 0.05, 1.0
MIN_TTL = timedelta(seconds=600)  # Kubernetes' minimum of spec.expirationSeconds
_PATH = "/apis/certificates.k8s.io/v1/certificatesigningrequests"


class SigningError(Exception):
    """No certificate was issued; a retry may succeed."""


class CsrSigner:
    """An `identity.csr_signer.Signer`. `sign` waits without limit: callers set a timeout."""

    def __init__(self, client: Any, roots: Callable[[], bytes], ttl: timedelta) -> None:
        """`roots` returns the bundle that peers trust, empty while it is unknown."""
        self._client = client
        self._roots = roots
        self._ttl = max(ttl, MIN_TTL)

    async def sign(self, identity: str, csr_pem: bytes) -> IssuedCertificate:
        """Raises CsrRejected or SigningError."""
        if not self._roots():
            raise SigningError(
                "the mesh's root certificates are not published yet; "
                "hint: check that `ztunnel controller` runs"
            )
        created = await self._send("POST", _PATH, self._request(csr_pem))
        path = f"{_PATH}/{created['metadata']['name']}"
        interval_s = MIN_POLL_INTERVAL_S
        while True:
            await asyncio.sleep(interval_s)
            interval_s = min(interval_s * 1.5, MAX_POLL_INTERVAL_S)
            chain = _certificate(await self._send("GET", path))
            if chain:
                return verify_issued(identity, csr_pem, chain, self._roots())

    def _request(self, csr_pem: bytes) -> dict[str, Any]:
        return {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "ztunnel-"},
            "spec": {
                "request": base64.b64encode(csr_pem).decode(),
                "signerName": SIGNER_NAME,
                "usages": list(USAGES),
                "expirationSeconds": int(self._ttl.total_seconds()),
            },
        }

    async def _send(self, method: str, path: str, body: Any = None) -> Any:
        try:
            return await asyncio.to_thread(send, self._client, method, path, body=body)
        except ApiError as error:
            raise SigningError(f"certificate request failed: {error}") from error


def verify_issued(
    identity: str, csr_pem: bytes, chain_pem: bytes, roots_pem: bytes
) -> IssuedCertificate:
    """The issued certificate, if it matches the request and peers can verify it.

    Raises SigningError.
    """
    try:
        leaf, *above = x509.load_pem_x509_certificates(chain_pem)
        roots = x509.load_pem_x509_certificates(roots_pem)
    except ValueError as error:
        raise SigningError(f"the issued certificate is malformed: {error}") from error
    if leaf.public_key() != x509.load_pem_x509_csr(csr_pem).public_key():
        raise SigningError("the certificate was issued for another key")
    if spiffe_names(leaf) != [identity]:
        raise SigningError(f"the certificate is for {spiffe_names(leaf)}, want {identity}")
    if not ca.has_path_to_root(leaf, above, roots):
        raise SigningError("the certificate's root is not published yet")
    return IssuedCertificate(
        chain_pem=chain_pem,
        roots_pem=roots_pem,
        serial=leaf.serial_number,
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def _certificate(csr: Any) -> bytes:
    """The issued chain (PEM), empty while the request is pending. Raises CsrRejected."""
    status = csr.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] in ("Denied", "Failed"):
            reason, message = condition.get("reason", ""), condition.get("message", "")
            raise CsrRejected(RejectionReason.DENIED, f"{reason}: {message}")
    return base64.b64decode(status.get("certificate") or "")
