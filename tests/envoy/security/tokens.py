# SPDX-License-Identifier: Apache-2.0
"""Issues JSON Web Tokens (RFC 7519), signed with ES256."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

_WIDTH = 32  # bytes of a coordinate of P-256
FAR_FUTURE = 4_000_000_000  # seconds since the epoch


class Issuer:
    """An issuer with one key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def jwks(self) -> str:
        """The key set."""
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "EC",
            "crv": "P-256",
            "alg": "ES256",
            "kid": self.name,
            "x": _base64(numbers.x.to_bytes(_WIDTH, "big")),
            "y": _base64(numbers.y.to_bytes(_WIDTH, "big")),
        }
        return json.dumps({"keys": [key]})

    def token(self, **claims: Any) -> str:
        """A token of the subject `alice` that is valid for decades; `claims` add or replace."""
        payload = {"iss": self.name, "sub": "alice", "exp": FAR_FUTURE, **claims}
        header = {"alg": "ES256", "kid": self.name, "typ": "JWT"}
        parts = [_base64(json.dumps(part).encode()) for part in (header, payload)]
        signed = ".".join(parts)
        der = self._key.sign(signed.encode(), ec.ECDSA(SHA256()))
        r, s = decode_dss_signature(der)
        return f"{signed}.{_base64(r.to_bytes(_WIDTH, 'big') + s.to_bytes(_WIDTH, 'big'))}"

    def bearer(self, **claims: Any) -> tuple[str, str]:
        """The header of a request with a token."""
        return "authorization", f"Bearer {self.token(**claims)}"


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
