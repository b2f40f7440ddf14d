# SPDX-License-Identifier: Apache-2.0
"""Validates and signs certificate requests, for the lab and for Kubernetes.

Pure: bytes and a time in, a certificate or a rejection out. Only the public key of the request is
used in the certificate. The caller has authorized the requester for the identity before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from ztunnel.identity.ca import BACKDATE, Authority, key_usage
from ztunnel.mesh.spiffe import SpiffeError, SpiffeId, parse

DEFAULT_TTL = timedelta(hours=24)  # Istio's SECRET_TTL
_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")  # RFC 2985, 5.4.2
MAX_CSR_BYTES = 16 * 1024  # a P-256 request with one name has less than 600


class RejectionReason(StrEnum):
    """Why a request was rejected."""

    MALFORMED = "malformed"
    SIGNATURE = "signature"
    KEY = "key"
    NAMES = "names"
    EXTRAS = "extras"
    IDENTITY = "identity"
    AUTHORITY = "authority"
    CA_EXPIRED = "ca-expired"
    DENIED = "denied"  # by the signer of the CSR API


class CsrRejected(Exception):  # noqa: N818  a decision, not a defect
    """The request is rejected; a retry with the same request fails again."""

    def __init__(self, reason: RejectionReason, detail: str) -> None:
        super().__init__(f"certificate request rejected ({reason.value}): {detail}")
        self.reason = reason


@dataclass(frozen=True)
class IssuedCertificate:
    """A signed certificate. `chain_pem` starts with the leaf; `not_after` is in Unix seconds."""

    chain_pem: bytes
    roots_pem: bytes
    serial: int
    not_before: float
    not_after: float


class Signer(Protocol):
    """Signs certificate requests: with a CA on disk, or through the Kubernetes CSR API."""

    async def sign(self, identity: str, csr_pem: bytes) -> IssuedCertificate:
        """Sign a request. Raises CsrRejected, or another exception if a retry can succeed."""
        ...


class DiskSigner:
    """Signs with a CA in this process; used by the lab."""

    def __init__(
        self,
        authority: Authority,
        *,
        ttl: timedelta = DEFAULT_TTL,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._authority = authority
        self._ttl = ttl
        self._clock = clock

    async def sign(self, identity: str, csr_pem: bytes) -> IssuedCertificate:
        await asyncio.sleep(0)  # yields, so that many requests do not block the event loop
        return sign(self._authority, csr_pem, identity, now=self._clock(), ttl=self._ttl)


def sign(
    authority: Authority,
    csr_pem: bytes,
    identity: str,
    *,
    now: datetime,
    ttl: timedelta = DEFAULT_TTL,
) -> IssuedCertificate:
    """Sign the key of a request for `identity`, for which the requester is authorized.

    Raises CsrRejected. The certificate never outlives the CA.
    """
    key = verify(csr_pem, identity)
    end = authority.certificate.not_valid_after_utc
    if not authority.certificate.not_valid_before_utc <= now < end:
        raise CsrRejected(RejectionReason.CA_EXPIRED, f"the CA's certificate is not valid at {now}")
    leaf = _leaf(authority, key, identity, now - BACKDATE, min(now + ttl, end))
    return IssuedCertificate(
        chain_pem=leaf.public_bytes(serialization.Encoding.PEM) + authority.intermediates_pem,
        roots_pem=authority.roots_pem,
        serial=leaf.serial_number,
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def verify(csr_pem: bytes, identity: str) -> ec.EllipticCurvePublicKey:
    """Return the key of a request for exactly `identity` and nothing else. Raises CsrRejected."""
    key, name = _key_and_name(csr_pem)
    _identity(identity)
    if name != identity:
        raise CsrRejected(
            RejectionReason.IDENTITY, f"requested {name!r}, authorized for {identity!r}"
        )
    return key


def requested_identity(csr_pem: bytes) -> SpiffeId:
    """Return the identity of a request that has one identity and nothing else.

    Raises CsrRejected.
    """
    return _identity(_key_and_name(csr_pem)[1])


def _key_and_name(csr_pem: bytes) -> tuple[ec.EllipticCurvePublicKey, str]:
    csr = _parse_csr(csr_pem)
    key = _verified_key(csr)
    _check_authority(csr)
    name = _single_uri_name(csr)
    _check_extras(csr)
    return key, name


def spiffe_names(certificate: x509.Certificate) -> list[str]:
    """Return all subject alternative names; a workload certificate has exactly one SPIFFE ID."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names.value]


def _identity(name: str) -> SpiffeId:
    try:
        return parse(name)
    except SpiffeError as error:
        raise CsrRejected(RejectionReason.IDENTITY, str(error)) from error


def _parse_csr(csr_pem: bytes) -> x509.CertificateSigningRequest:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise CsrRejected(RejectionReason.MALFORMED, f"{len(csr_pem)} bytes, limit {MAX_CSR_BYTES}")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        csr.extensions  # noqa: B018  parsed on first use
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CsrRejected(
            RejectionReason.MALFORMED, f"not a certificate request: {error}"
        ) from error
    return csr


def _verified_key(csr: x509.CertificateSigningRequest) -> ec.EllipticCurvePublicKey:
    """Return the public key after verifying that the requester has the private key."""
    try:
        key = csr.public_key()
        valid = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CsrRejected(RejectionReason.KEY, str(error)) from error
    except InvalidSignature:
        valid = False
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise CsrRejected(RejectionReason.KEY, "the key is not on curve P-256")
    if not valid:
        raise CsrRejected(RejectionReason.SIGNATURE, "the request is not signed by its own key")
    return key


def _check_authority(csr: x509.CertificateSigningRequest) -> None:
    for extension in csr.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise CsrRejected(RejectionReason.AUTHORITY, "the request is for a CA certificate")
        if isinstance(value, x509.KeyUsage) and (value.key_cert_sign or value.crl_sign):
            raise CsrRejected(
                RejectionReason.AUTHORITY, "the request is for a key that signs certificates"
            )


def _single_uri_name(csr: x509.CertificateSigningRequest) -> str:
    try:
        extension = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise CsrRejected(RejectionReason.NAMES, "the request has no SPIFFE ID") from None
    names = list(extension.value)
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise CsrRejected(
            RejectionReason.NAMES, f"one URI name is allowed, found {len(names)} names"
        )
    return names[0].value


def _check_extras(csr: x509.CertificateSigningRequest) -> None:
    """Reject extensions that would not be signed, rather than drop them silently."""
    if len(csr.subject.rdns):
        raise CsrRejected(
            RejectionReason.EXTRAS, "the request has a subject in addition to its SPIFFE ID"
        )
    known = x509.SubjectAlternativeName.oid
    extra = [each.oid.dotted_string for each in csr.extensions if each.oid != known]
    extra += [each.oid.dotted_string for each in csr.attributes if each.oid != _EXTENSION_REQUEST]
    if extra:
        raise CsrRejected(
            RejectionReason.EXTRAS,
            f"the request has extensions other than a name: {', '.join(extra)}",
        )


def _leaf(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    identity: str,
    start: datetime,
    end: datetime,
) -> x509.Certificate:
    issuer_key = authority.certificate.public_key()
    assert isinstance(issuer_key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)  # see ca.assemble
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(names, critical=True)  # RFC 5280 4.2.1.6: the subject is empty
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )
    return builder.sign(authority.key, hashes.SHA256())
