# SPDX-License-Identifier: Apache-2.0
"""A private certificate authority for tests of TLS to backends."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class CertificateAuthority:
    """`pem`: its certificate; `key_pem`: its private key."""

    def __init__(self, name: str = "authority") -> None:
        """Roots that are trusted together need different names."""
        self._name = _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._now = datetime.datetime.now(datetime.UTC)
        self.pem = self._certificate(self._name, self._key.public_key(), None)
        self.key_pem = _key_pem(self._key)

    def issue(self, host: str) -> str:
        """A certificate of a host and its key, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._certificate(_name(host), key.public_key(), host) + _key_pem(key)

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, host: str | None
    ) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - datetime.timedelta(hours=1))
            .not_valid_after(self._now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is not None:
            names = x509.SubjectAlternativeName([x509.DNSName(host)])
            builder = builder.add_extension(names, critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
