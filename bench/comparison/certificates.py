# SPDX-License-Identifier: Apache-2.0
"""One identity for both ends of a peer, signed by a CA like the certificates of ztunnel."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.peers.peer import Certificates
from ztunnel.identity import ca

_IDENTITY = "spiffe://cluster.local/ns/bench/sa/peer"
_LIFETIME = timedelta(days=1)


def make(directory: Path, curve: type[ec.EllipticCurve]) -> Certificates:
    """Write CA, certificate and key to `directory`, readable only by the owner."""
    directory.mkdir(mode=0o700, parents=True)
    authority = ca.load_or_create(directory / "ca", "cluster.local")
    key = ec.generate_private_key(curve())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - ca.BACKDATE)
        .not_valid_after(now + _LIFETIME)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_IDENTITY)]), critical=True
        )
        .sign(authority.key, hashes.SHA256())
    )
    return _write(
        directory,
        authority.roots_pem,
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def _write(directory: Path, roots: bytes, certificate: bytes, key: bytes) -> Certificates:
    made = Certificates(
        roots=directory / "roots.pem",
        certificate=directory / "certificate.pem",
        key=directory / "key.pem",
        bundle=directory / "bundle.pem",
    )
    made.roots.write_bytes(roots)
    made.certificate.write_bytes(certificate)
    for path, content in ((made.key, key), (made.bundle, certificate + key)):
        path.touch(mode=0o600)
        path.write_bytes(content)
    return made
