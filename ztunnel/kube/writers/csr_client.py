# SPDX-License-Identifier: Apache-2.0
"""Certificates through the API server: the agent's side of certificates.k8s.io.

    request --create--> pending --(the signer approves and signs)--> certificate, checked here
                           \\--(it denies)--> Refused

Asks for the answer now and then, as a watch for each would need a connection and the right to
read everybody's requests.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from cryptography import x509
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ztunnel.identity import ca
from ztunnel.identity.csr_signer import (
    CsrRejected,
    IssuedCertificate,
    RejectionReason,
    spiffe_names,
)
from ztunnel.kube.constants import SIGNER_NAME, USAGES

TIMEOUT = (5, 10)  # seconds to connect, to answer
FIRST_LOOK, LONGEST_LOOK = 0.05, 1.0  # seconds between looks for the answer
SHORTEST_TTL = timedelta(seconds=600)  # Kubernetes takes no shorter spec.expirationSeconds


class SigningError(Exception):
    """No certificate this time; asking again may help."""


class CsrSigner:
    """An `identity.signer.Signer`. Waits without end: the caller bounds it."""

    def __init__(self, api: Any, roots: Callable[[], bytes], ttl: timedelta) -> None:
        """`roots` gives the bundle that peers trust now, empty when it is not known yet."""
        self._api = client.CertificatesV1Api(api)
        self._roots = roots
        self._ttl = max(ttl, SHORTEST_TTL)

    async def sign(self, identity: str, csr_pem: bytes) -> IssuedCertificate:
        """Raises Refused or SigningError."""
        if not self._roots():
            raise SigningError(
                "the mesh's roots are not known yet; does `ztunnel controller` run, "
                "and has it published them?"
            )
        name = (await _asked(self._create, csr_pem)).metadata.name
        delay = FIRST_LOOK
        while True:
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, LONGEST_LOOK)
            chain = _answer(await _asked(self._read, name))
            if chain:
                return issued(identity, csr_pem, chain, self._roots())

    def _create(self, csr_pem: bytes) -> Any:
        body = client.V1CertificateSigningRequest(
            metadata=client.V1ObjectMeta(generate_name="ztunnel-"),
            spec=client.V1CertificateSigningRequestSpec(
                request=base64.b64encode(csr_pem).decode(),
                signer_name=SIGNER_NAME,
                usages=list(USAGES),
                expiration_seconds=int(self._ttl.total_seconds()),
            ),
        )
        return self._api.create_certificate_signing_request(body, _request_timeout=TIMEOUT)

    def _read(self, name: str) -> Any:
        return self._api.read_certificate_signing_request(name, _request_timeout=TIMEOUT)


def issued(identity: str, csr_pem: bytes, chain_pem: bytes, roots_pem: bytes) -> IssuedCertificate:
    """What the signer gave, if it is what was asked for and peers will take it.

    Raises SigningError.
    """
    try:
        leaf, *above = x509.load_pem_x509_certificates(chain_pem)
        roots = x509.load_pem_x509_certificates(roots_pem)
    except ValueError as error:
        raise SigningError(f"the signer's answer is no certificate: {error}") from error
    if leaf.public_key() != x509.load_pem_x509_csr(csr_pem).public_key():
        raise SigningError("the signer certified another key")
    if spiffe_names(leaf) != [identity]:
        raise SigningError(f"the signer certified {spiffe_names(leaf)}, asked was {identity}")
    if not ca.has_path_to_root(leaf, above, roots):
        raise SigningError("no published root vouches for the signer's certificate yet")
    return IssuedCertificate(
        chain_pem=chain_pem,
        roots_pem=roots_pem,
        serial=leaf.serial_number,
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def _answer(csr: Any) -> bytes:
    """The certificate, empty while there is none. Raises Refused."""
    status = csr.status
    for condition in (status.conditions if status else None) or []:
        if condition.type in ("Denied", "Failed"):
            raise CsrRejected(RejectionReason.DENIED, f"{condition.reason}: {condition.message}")
    if not (status and status.certificate):
        return b""
    return base64.b64decode(status.certificate)


async def _asked(call: Callable[..., Any], argument: Any) -> Any:
    try:
        return await asyncio.to_thread(call, argument)
    except ApiException as error:
        raise SigningError(f"the API server refused: {error.status}: {_said(error)}") from error
    except HTTPError as error:
        raise SigningError(f"the API server did not answer: {error}") from error


def _said(error: ApiException) -> str:
    """The server's own message, without its headers."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, TypeError, KeyError):
        return str(error.reason)
