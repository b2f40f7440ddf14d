# SPDX-License-Identifier: Apache-2.0
"""Creates or loads a certificate authority in Istio's `cacerts` format (directory or Secret).

    ca-cert.pem     the signing certificate
    ca-key.pem      its private key, mode 0600
    cert-chain.pem  from the signing certificate up to the root
    root-cert.pem   the trusted roots

A self-signed CA has the same certificate in all three files. Generated keys are P-256; the RSA keys
that Istio's tools generate are supported too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

CA_CERT = "ca-cert.pem"
CA_KEY = "ca-key.pem"
CERT_CHAIN = "cert-chain.pem"
ROOT_CERT = "root-cert.pem"
FILES = (CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT)

ROOT_LIFETIME = timedelta(days=3650)  # as istiod's self-signed root
MIN_RSA_BITS = 2048  # bits
BACKDATE = timedelta(minutes=1)  # tolerates nodes whose clocks are behind


SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class CaError(Exception):
    """The CA cannot be used; the text states what to do."""


@dataclass(frozen=True)
class Authority:
    """A CA ready to sign.

    `intermediates_pem` follows the leaf on the wire (empty for a self-signed CA); `roots_pem` are
    the roots that peers trust.
    """

    certificate: x509.Certificate
    key: SigningKey = field(repr=False)
    intermediates_pem: bytes
    roots_pem: bytes


def create(directory: Path, trust_domain: str, *, now: datetime | None = None) -> bool:
    """Create a self-signed CA in `directory`; return False if a CA exists. Raises CaError.

    Safe against concurrent calls: each builds a complete CA beside the directory, and the atomic
    rename of the first one wins.
    """
    parent = directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=parent))  # mode 0700
    try:
        _write(draft, self_signed(trust_domain, now or datetime.now(UTC)))
        os.rename(draft, directory)  # succeeds only if the target is absent or an empty directory
    except OSError as error:
        if (directory / CA_CERT).exists():
            return False
        raise CaError(
            f"could not create a CA in {directory}: {error.strerror}; "
            "hint: empty the directory, or provide one with " + ", ".join(FILES)
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def load(directory: Path) -> Authority:
    """Load the CA of a directory. Raises CaError."""
    try:
        parts = {
            name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()
        }
    except OSError as error:
        raise CaError(f"{directory} cannot be read: {error.strerror}") from error
    return assemble(parts, str(directory))


def assemble(parts: Mapping[str, bytes], where: str) -> Authority:
    """Build a CA from the contents of FILES. Raises CaError, which names `where`."""
    missing = [name for name in FILES if name not in parts]
    if missing:
        raise CaError(
            f"{where} lacks {', '.join(missing)}; hint: provide the files of Istio's "
            "cacerts Secret, or none, so that a CA is created"
        )
    try:
        certificate = x509.load_pem_x509_certificate(parts[CA_CERT])
        key = serialization.load_pem_private_key(parts[CA_KEY], None)
        chain = x509.load_pem_x509_certificates(parts[CERT_CHAIN])
        roots = x509.load_pem_x509_certificates(parts[ROOT_CERT])
    except (ValueError, TypeError) as error:
        raise CaError(f"{where} does not contain a usable CA: {error}") from error
    if not _is_usable(key):
        raise CaError(
            f"{where}: {CA_KEY} must be an elliptic curve key or an RSA key of {MIN_RSA_BITS} bits"
        )
    assert isinstance(key, SigningKey)
    _check_certificate(where, certificate, key)
    if not has_path_to_root(certificate, chain, roots):
        raise CaError(f"{where}: {CA_CERT} does not chain to a root of {ROOT_CERT}")
    return Authority(
        certificate=certificate,
        key=key,
        intermediates_pem=_pem([*_intermediates(certificate, chain)]),
        roots_pem=_pem(roots),
    )


def chain_is_trusted(roots_pem: bytes, chain_pem: bytes) -> bool:
    """Return whether a leaf with its intermediates chains to one of the roots; False if invalid."""
    try:
        leaf, *above = x509.load_pem_x509_certificates(chain_pem)
        roots = x509.load_pem_x509_certificates(roots_pem)
    except ValueError:
        return False
    return has_path_to_root(leaf, above, roots)


def has_path_to_root(
    certificate: x509.Certificate, chain: list[x509.Certificate], roots: list[x509.Certificate]
) -> bool:
    """Return whether `chain`, in any order, links a certificate to a root by signatures."""
    current = certificate
    for _ in range(len(chain) + 1):
        if current in roots or any(_is_issued_by(current, root) for root in roots):
            return True
        above = [one for one in chain if one != current and _is_issued_by(current, one)]
        if not above:
            return False
        current = above[0]
    return False


def _is_issued_by(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_usable(key: object) -> bool:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.key_size >= MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePrivateKey)


def load_or_create(directory: Path, trust_domain: str) -> Authority:
    """Load the CA of a directory; create it first if absent. Raises CaError."""
    if not directory.exists() or not any(directory.iterdir()):
        create(directory, trust_domain)
    return load(directory)


def self_signed(trust_domain: str, now: datetime) -> dict[str, bytes]:
    """Create a self-signed CA; return the contents of FILES."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    public = _pem([builder.sign(key, hashes.SHA256())])
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {CA_CERT: public, CA_KEY: secret, CERT_CHAIN: public, ROOT_CERT: public}


def key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    """Return a keyUsage extension with only the named usages."""
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


def _write(directory: Path, parts: Mapping[str, bytes]) -> None:
    for name, data in parts.items():
        mode = 0o600 if name == CA_KEY else 0o644
        fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)


def _check_certificate(where: str, certificate: x509.Certificate, key: SigningKey) -> None:
    if certificate.public_key() != key.public_key():
        raise CaError(f"{where}: {CA_KEY} is not the key of {CA_CERT}")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        is_ca = False
    else:
        is_ca = constraints.value.ca
    if not is_ca:
        raise CaError(f"{where}: {CA_CERT} is not a CA certificate (basicConstraints CA:TRUE)")


def _intermediates(
    certificate: x509.Certificate, chain: list[x509.Certificate]
) -> list[x509.Certificate]:
    """Return the certificates between a leaf and the root; roots are never sent."""
    above = chain if certificate in chain else [certificate, *chain]
    return [one for one in above if one.issuer != one.subject]


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)
