# SPDX-License-Identifier: Apache-2.0
"""Decide on a certificate request and sign it: the same code for the lab and for Kubernetes.

Pure: bytes and a time in, a certificate or a refusal out. Nothing of the request but its key
reaches the certificate. Who may ask for which identity is the caller's question, answered before.
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
MAX_CSR = 16 * 1024  # bytes; a P-256 request with one name has under 600


class Reason(StrEnum):
    """Why a request was refused."""

    MALFORMED = "malformed"
    SIGNATURE = "signature"
    KEY = "key"
    NAMES = "names"
    EXTRAS = "extras"
    IDENTITY = "identity"
    AUTHORITY = "authority"
    CA_EXPIRED = "ca-expired"
    DENIED = "denied"  # by a signer elsewhere


class Refused(Exception):  # noqa: N818  a decision, not a defect
    """The request will not be signed; asking again with the same one is of no use."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"certificate refused ({reason.value}): {detail}")
        self.reason = reason


@dataclass(frozen=True)
class Issued:
    """A signed certificate. `chain_pem` starts with the leaf; `not_after` is in Unix seconds."""

    chain_pem: bytes
    roots_pem: bytes
    serial: int
    not_before: float
    not_after: float


class Signer(Protocol):
    """Whoever gets certificates signed: a CA on disk, or Kubernetes' CSR API."""

    async def sign(self, identity: str, csr_pem: bytes) -> Issued:
        """Raises Refused, or any other exception when trying again may help."""
        ...


class DiskSigner:
    """Signs with a CA held in this process: the lab's signer."""

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

    async def sign(self, identity: str, csr_pem: bytes) -> Issued:
        await asyncio.sleep(0)  # many at once must not keep the agent from its sockets
        return sign(self._authority, csr_pem, identity, now=self._clock(), ttl=self._ttl)


def sign(
    authority: Authority,
    csr_pem: bytes,
    identity: str,
    *,
    now: datetime,
    ttl: timedelta = DEFAULT_TTL,
) -> Issued:
    """Certify the request's key for `identity`, which the caller was authorised for.

    Raises Refused. The certificate never outlives the CA.
    """
    key = verify(csr_pem, identity)
    end = authority.certificate.not_valid_after_utc
    if not authority.certificate.not_valid_before_utc <= now < end:
        raise Refused(Reason.CA_EXPIRED, f"the CA's certificate is not valid at {now}")
    leaf = _leaf(authority, key, identity, now - BACKDATE, min(now + ttl, end))
    return Issued(
        chain_pem=leaf.public_bytes(serialization.Encoding.PEM) + authority.intermediates_pem,
        roots_pem=authority.roots_pem,
        serial=leaf.serial_number,
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def verify(csr_pem: bytes, identity: str) -> ec.EllipticCurvePublicKey:
    """The request's key, if it asks for exactly `identity` and nothing more. Raises Refused."""
    key, name = _key_and_name(csr_pem)
    _identity(identity)
    if name != identity:
        raise Refused(Reason.IDENTITY, f"asked for {name!r}, authorised {identity!r}")
    return key


def requested(csr_pem: bytes) -> SpiffeId:
    """What a request asks for, if that is one identity and nothing more. Raises Refused."""
    return _identity(_key_and_name(csr_pem)[1])


def _key_and_name(csr_pem: bytes) -> tuple[ec.EllipticCurvePublicKey, str]:
    csr = _parsed(csr_pem)
    key = _proven_key(csr)
    _check_authority(csr)
    name = _only_name(csr)
    _check_extras(csr)
    return key, name


def spiffe_names(certificate: x509.Certificate) -> list[str]:
    """All its names, which are one SPIFFE id in a workload's; none when it has no extension."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names.value]


def _identity(name: str) -> SpiffeId:
    try:
        return parse(name)
    except SpiffeError as error:
        raise Refused(Reason.IDENTITY, str(error)) from error


def _parsed(csr_pem: bytes) -> x509.CertificateSigningRequest:
    if len(csr_pem) > MAX_CSR:
        raise Refused(Reason.MALFORMED, f"{len(csr_pem)} bytes, limit {MAX_CSR}")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        csr.extensions  # noqa: B018  parsed on first use
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise Refused(Reason.MALFORMED, f"not a certificate request: {error}") from error
    return csr


def _proven_key(csr: x509.CertificateSigningRequest) -> ec.EllipticCurvePublicKey:
    """The public key, once the request proves that its sender has the private one."""
    try:
        key = csr.public_key()
        valid = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused(Reason.KEY, str(error)) from error
    except InvalidSignature:
        valid = False
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise Refused(Reason.KEY, "the key is not on curve P-256")
    if not valid:
        raise Refused(Reason.SIGNATURE, "the request is not signed by its own key")
    return key


def _check_authority(csr: x509.CertificateSigningRequest) -> None:
    for extension in csr.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise Refused(Reason.AUTHORITY, "the request asks to be a CA")
        if isinstance(value, x509.KeyUsage) and (value.key_cert_sign or value.crl_sign):
            raise Refused(Reason.AUTHORITY, "the request asks for a key that signs certificates")


def _only_name(csr: x509.CertificateSigningRequest) -> str:
    try:
        extension = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise Refused(Reason.NAMES, "the request has no SPIFFE id") from None
    names = list(extension.value)
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise Refused(Reason.NAMES, f"one URI name is allowed, found {len(names)} names")
    return names[0].value


def _check_extras(csr: x509.CertificateSigningRequest) -> None:
    """None of it would be signed; who asks for it expects something that we do not give."""
    if len(csr.subject.rdns):
        raise Refused(Reason.EXTRAS, "the request has a subject besides its SPIFFE id")
    known = x509.SubjectAlternativeName.oid
    extra = [each.oid.dotted_string for each in csr.extensions if each.oid != known]
    extra += [each.oid.dotted_string for each in csr.attributes if each.oid != _EXTENSION_REQUEST]
    if extra:
        raise Refused(Reason.EXTRAS, f"the request asks for more than a name: {', '.join(extra)}")


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
