# SPDX-License-Identifier: Apache-2.0
"""JSON Web Tokens, signed by a key of this process."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _encoded(value.to_bytes((value.bit_length() + 7) // 8, "big"))


_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_PUBLIC = _KEY.public_key().public_numbers()
JWKS = json.dumps(
    {"keys": [{"kty": "RSA", "kid": "1", "alg": "RS256", "n": _number(_PUBLIC.n), "e": "AQAB"}]}
)


def signed(issuer: str, subject: str = "someone", *, valid_s: float = 600, **claims: Any) -> str:
    """A token, expired if `valid_s` is negative."""
    payload = {"iss": issuer, "sub": subject, "exp": int(time.time() + valid_s), **claims}
    head = {"alg": "RS256", "kid": "1", "typ": "JWT"}
    text = ".".join(_encoded(json.dumps(part).encode()) for part in (head, payload))
    signature = _KEY.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{text}.{_encoded(signature)}"
