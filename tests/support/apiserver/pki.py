# SPDX-License-Identifier: Apache-2.0
"""The keys of a test cluster: one CA, the API server's certificate, clients' certificates."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = timedelta(days=1)
_SERVER_NAMES: tuple[x509.GeneralName, ...] = (
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.DNSName("localhost"),
    x509.DNSName("kubernetes.default.svc"),
)


class Pki:
    """A CA in memory that writes `NAME.crt` and `NAME.key` into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-cluster")])
        builder = _builder(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        certificate = builder.sign(self._key, hashes.SHA256())
        self.ca = directory / "ca.crt"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str, addresses: Sequence[str] = ()) -> tuple[Path, Path]:
        """Certificate and key of a server on loopback and at `addresses`."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        others = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        names = x509.SubjectAlternativeName([*_SERVER_NAMES, *others])
        return self._issue(name, subject, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client(self, name: str, groups: Sequence[str] = ()) -> tuple[Path, Path]:
        """Certificate and key of a user in groups, as Kubernetes reads them: CN and O."""
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, name))
        return self._issue(name, x509.Name(attributes), ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def signing_key(self, name: str) -> Path:
        """A private key for ServiceAccount tokens."""
        return self._write(name, ec.generate_private_key(ec.SECP256R1()))

    def _issue(
        self,
        name: str,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None,
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, self._name, key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        if names is not None:
            builder = builder.add_extension(names, False)
        certificate = builder.sign(self._key, hashes.SHA256())
        path = self._directory / f"{name.replace(':', '_')}.crt"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path, self._write(name.replace(":", "_"), key)

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey) -> Path:
        path = self._directory / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,  # all that takes a token's key
                serialization.NoEncryption(),
            )
        )
        return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + _LIFETIME)
    )
