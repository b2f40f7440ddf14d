# SPDX-License-Identifier: Apache-2.0
"""Key sets: usable keys pass in canonical form, all others are left out."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.l7.api.jwks import MAX_JWKS_BYTES, MAX_KEYS, JwksError, parse_jwks

Key = dict[str, Any]


def base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int = 0) -> str:
    return base64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def ec_key(curve: ec.EllipticCurve, name: str, size: int) -> Key:
    numbers = ec.generate_private_key(curve).public_key().public_numbers()
    return {"kty": "EC", "crv": name, "x": number(numbers.x, size), "y": number(numbers.y, size)}


def rsa_key(bits: int = 2048) -> Key:
    numbers = rsa.generate_private_key(65537, bits).public_key().public_numbers()
    return {"kty": "RSA", "n": number(numbers.n), "e": "AQAB", "kid": "1", "alg": "RS256"}


KEYS: list[Key] = [
    rsa_key(),
    ec_key(ec.SECP256R1(), "P-256", 32),
    ec_key(ec.SECP384R1(), "P-384", 48),
    ec_key(ec.SECP521R1(), "P-521", 66),
    {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": base64(ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()),
    },
]
RSA, P256 = KEYS[0], KEYS[1]


def test_usable_keys_pass_without_other_members() -> None:
    given_keys = [{**key, "use": "sig", "x5c": ["AAAA"], "key_ops": {}} for key in KEYS]
    found = parse_jwks(json.dumps({"keys": given_keys, "more": 1}))
    assert json.loads(found.text) == {"keys": KEYS}
    assert found.skipped == ()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("x", "not an object"),
        ({}, "no text kty"),
        ({"kty": "oct", "k": "AAAA"}, "want RSA, EC or OKP"),
        ({**P256, "y": P256["x"]}, "is not a point of P-256"),
        ({**P256, "crv": "P-384"}, "is not a point of P-384"),
        ({**P256, "crv": "secp256k1"}, "has crv"),
        ({**P256, "alg": "ES384"}, "want ES256"),
        ({**P256, "x": "!"}, "is not"),
        ({**P256, "x": "\u00e9"}, "base64url"),
        ({**P256, "kid": 1}, "no text kid"),
        ({**P256, "kid": "a\n"}, "ASCII"),
        ({**RSA, "e": "AQ"}, "exponent"),
        ({**RSA, "n": "AQAB"}, "modulus of 17 bits"),
        ({**RSA, "alg": "HS256"}, "has alg"),
        ({"kty": "OKP", "crv": "X25519", "x": "A" * 43}, "Ed25519"),
        ({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}, "Ed25519"),
    ],
)
def test_unusable_key_is_left_out(key: object, reason: str) -> None:
    found = parse_jwks(json.dumps({"keys": [key, KEYS[2]]}))
    assert json.loads(found.text) == {"keys": [KEYS[2]]}
    (skipped,) = found.skipped
    assert skipped.startswith("keys[0] ")
    assert reason in skipped
    with pytest.raises(JwksError, match="no usable key"):
        parse_jwks(json.dumps({"keys": [key]}))


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "{}", '{"keys": []}', '{"keys": {}}', "[" * 100_000),
        json.dumps({"keys": [P256] * (MAX_KEYS + 1)}),
        " " * (MAX_JWKS_BYTES + 1),
    ],
)
def test_text_that_is_no_key_set_is_rejected(text: str) -> None:
    with pytest.raises(JwksError):
        parse_jwks(text)


@given(
    st.dictionaries(
        st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg", "kid"]),
        st.sampled_from(["RSA", "EC", "P-256", "AQAB", "A" * 43, "A" * 342, "ES256"])
        | st.integers(),
    )
)
def test_parser_raises_no_other_error(key: Key) -> None:
    with pytest.raises(JwksError):
        parse_jwks(json.dumps({"keys": [key]}))
