# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys in the data of Secrets and ConfigMaps: parsed, checked, written anew.

Only what Envoy accepts is valid. Values of unbounded size, other PEM objects and comments do not
pass, and no error contains what was read.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from enum import Enum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from ztunnel.l7.deployment.settings import Json

CERTIFICATE_KEY, PRIVATE_KEY, CA_KEY = "tls.crt", "tls.key", "ca.crt"  # of Secrets, ConfigMaps
MAX_TEXT_BYTES = 256 << 10  # of one value that is parsed
MIN_RSA_BITS = 2048  # Envoy rejects certificates with shorter keys
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)  # that Envoy accepts

Data = Mapping[str, bytes]  # of a Secret or ConfigMap, decoded


class Absent(Enum):
    """Why an object has no data."""

    MISSING = "missing"
    UNREADABLE = "unreadable"  # the controller has no right to read it


def decoded(obj: Json | None) -> Data | Absent:
    """The data of a Secret or ConfigMap as read; values that are not text count as empty."""
    if obj is None:
        return Absent.MISSING
    data = obj.get("data")
    found = {}
    for name, value in (data if isinstance(data, dict) else {}).items():
        text = value if isinstance(value, str) else ""
        found[name] = _base64(text) if obj.get("kind") == "Secret" else text.encode()
    return found


class InvalidCertificateError(ValueError):
    """Data has no valid certificates. The text is about names and properties, never content."""


def read_pair(data: Data) -> tuple[bytes, bytes]:
    """The chain and the key of a Secret in PEM. Raises InvalidCertificateError."""
    chain = _certificates(data, CERTIFICATE_KEY)
    try:
        public = chain[0].public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidCertificateError(f"{CERTIFICATE_KEY} has an unsupported key") from error
    key = _private_key(data)
    _check_strength(public)
    encoding = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*encoding) != public.public_bytes(*encoding):
        message = f"{PRIVATE_KEY} does not belong to the first certificate of {CERTIFICATE_KEY}"
        raise InvalidCertificateError(message)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _pem(chain), secret


def read_authorities(data: Data) -> list[bytes]:
    """The certificates of `ca.crt` in PEM. Raises InvalidCertificateError."""
    return [_pem([each]) for each in _certificates(data, CA_KEY)]


def _certificates(data: Data, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_value(data, name))
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise InvalidCertificateError(f"{name} is not a list of certificates in PEM") from error


def _private_key(data: Data) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(_value(data, PRIVATE_KEY), password=None)
    except InvalidCertificateError:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        message = f"{PRIVATE_KEY} is not an unencrypted private key in PEM"
        raise InvalidCertificateError(message) from None


def _check_strength(public: object) -> None:
    """Envoy would reject the certificate otherwise."""
    if isinstance(public, rsa.RSAPublicKey):
        if public.key_size < MIN_RSA_BITS:
            message = f"the RSA key has {public.key_size} bits; want {MIN_RSA_BITS} or more"
            raise InvalidCertificateError(message)
    elif not isinstance(public, ec.EllipticCurvePublicKey):
        raise InvalidCertificateError("the key is neither RSA nor ECDSA")
    elif not isinstance(public.curve, _CURVES):
        message = f"the curve {public.curve.name} is not P-256, P-384 or P-521"
        raise InvalidCertificateError(message)


def _value(data: Data, name: str) -> bytes:
    found = data.get(name)
    if not found:
        raise InvalidCertificateError(f"has no {name}")
    if len(found) > MAX_TEXT_BYTES:
        raise InvalidCertificateError(f"{name} has more than {MAX_TEXT_BYTES >> 10} KiB")
    return found


def _pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Without what surrounds the certificates: comments, or a key."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
