# SPDX-License-Identifier: Apache-2.0
"""Certificates for HTTPS servers of a lab, from a CA of the user, as Secrets.

The CA is not the mesh's: it stands for the one that browsers trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztunnel.identity import ca
from ztunnel.lab.errors import LabError
from ztunnel.lab.objects import SECRET, Object

ROOT_FILE = ca.ROOT_CERT  # in the CA's directory, for clients
LIFETIME = timedelta(days=30)
_ORGANIZATION = "ztunnel lab"  # of the CA


def tls_secret(ca_directory: Path, name: str, namespace: str, hosts: Sequence[str]) -> Object:
    """A Secret with a new certificate for host names and IP addresses.

    The CA in the directory is created if it does not exist. Raises LabError.
    """
    try:
        authority = ca.load_or_create(ca_directory, _ORGANIZATION)
    except ca.CaError as error:
        raise LabError(f"cannot use the CA in {ca_directory}: {error}") from error
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign(authority, key.public_key(), hosts)
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    key_pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    return {
        "apiVersion": "v1",
        "kind": SECRET,
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {
            "tls.crt": certificate.public_bytes(encoding).decode(),
            "tls.key": key_pem.decode(),
        },
    }


def _sign(
    authority: ca.Authority, key: ec.EllipticCurvePublicKey, hosts: Sequence[str]
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])]))
        .issuer_name(authority.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - ca.BACKDATE)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(list(map(_general_name, hosts))), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
