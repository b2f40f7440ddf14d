# SPDX-License-Identifier: Apache-2.0
"""A certificate authority in a directory of Istio's `cacerts` form: create it or load it.

    ca-cert.pem     the certificate that signs
    ca-key.pem      its private key, mode 0600
    cert-chain.pem  from the signing certificate up to the root
    root-cert.pem   what everybody trusts

A self-signed CA has the same certificate in all three. May import cryptography.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CA_CERT = "ca-cert.pem"
CA_KEY = "ca-key.pem"
CERT_CHAIN = "cert-chain.pem"
ROOT_CERT = "root-cert.pem"
FILES = (CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT)

LIFETIME = timedelta(days=3650)  # istiod's self-signed root lasts as long
BACKDATE = timedelta(minutes=1)  # tolerates nodes whose clocks are behind


class CaError(Exception):
    """The CA's directory can't be used; the text says what to do."""


@dataclass(frozen=True)
class Authority:
    """A CA ready to sign.

    `intermediates_pem` follows a leaf on the wire (empty for a self-signed CA), `roots_pem` is
    what peers trust.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    intermediates_pem: bytes
    roots_pem: bytes


def create(directory: Path, trust_domain: str, *, now: datetime | None = None) -> bool:
    """Make a self-signed CA in `directory`; False when a CA is there already.

    Several may try at once: each builds a whole CA beside the directory, the rename decides
    whose it is, and nobody ever sees half of one. Raises CaError.
    """
    parent = directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=parent))  # mode 0700
    try:
        _write(draft, *_self_signed(trust_domain, now or datetime.now(UTC)))
        os.rename(draft, directory)  # takes the place of nothing or of an empty directory only
    except OSError as error:
        if (directory / CA_CERT).exists():
            return False
        raise CaError(
            f"could not create a CA in {directory}: {error.strerror}; "
            "empty the directory, or give one that holds " + ", ".join(FILES)
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def load(directory: Path) -> Authority:
    """Read the CA of a directory and check that its parts belong together. Raises CaError."""
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise CaError(
            f"{directory} lacks {', '.join(missing)}; give a directory in the form of Istio's "
            "cacerts secret, or one that does not exist to have a CA made"
        )
    try:
        certificate = x509.load_pem_x509_certificate((directory / CA_CERT).read_bytes())
        key = serialization.load_pem_private_key((directory / CA_KEY).read_bytes(), None)
        chain = x509.load_pem_x509_certificates((directory / CERT_CHAIN).read_bytes())
        roots = x509.load_pem_x509_certificates((directory / ROOT_CERT).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise CaError(f"{directory} holds no usable CA: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CaError(f"{directory / CA_KEY} is no elliptic curve key; P-256 is what peers expect")
    _check(directory, certificate, key)
    return Authority(
        certificate=certificate,
        key=key,
        intermediates_pem=_pem([*_intermediates(certificate, chain)]),
        roots_pem=_pem(roots),
    )


def load_or_create(directory: Path, trust_domain: str) -> Authority:
    """The CA of a directory, made first when there is none. Raises CaError."""
    if not directory.exists() or not any(directory.iterdir()):
        create(directory, trust_domain)
    return load(directory)


def _self_signed(
    trust_domain: str, now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()), key


def key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    """The keyUsage extension with only what is named."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _write(directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = _pem([certificate])
    for name, data, mode in (
        (CA_KEY, secret, 0o600),
        (CA_CERT, public, 0o644),
        (CERT_CHAIN, public, 0o644),
        (ROOT_CERT, public, 0o644),
    ):
        fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)


def _check(directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    if certificate.public_key() != key.public_key():
        raise CaError(f"{directory}: {CA_KEY} is not the key of {CA_CERT}")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        is_ca = False
    else:
        is_ca = constraints.value.ca
    if not is_ca:
        raise CaError(f"{directory / CA_CERT} is no CA certificate (basicConstraints CA:TRUE)")


def _intermediates(
    certificate: x509.Certificate, chain: list[x509.Certificate]
) -> list[x509.Certificate]:
    """What a leaf needs between itself and the root; roots themselves are never sent."""
    above = chain if certificate in chain else [certificate, *chain]
    return [one for one in above if one.issuer != one.subject]


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)
