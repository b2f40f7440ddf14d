# SPDX-License-Identifier: Apache-2.0
"""Validates JSON Web Key Sets (RFC 7517) as strictly as Envoy does. Pure.

Envoy rejects a whole listener because of one key that it cannot read. So only keys that are known
to be readable are passed on, in canonical form.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_JWKS_BYTES = 128 * 1024
MAX_KEYS = 128
MAX_NAME_CHARS = 256  # of kid and alg
_RSA_BITS = range(1024, 8193)
_RSA_EXPONENTS = (3, 65537)  # Envoy's JWT library accepts no others
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ED25519_BYTES = 32


class _Curve(NamedTuple):
    """y² = x³ - 3x + b (mod p); NIST SP 800-186, section 3.2.1."""

    algorithm: str
    size: int  # bytes of a coordinate
    p: int
    b: int


_CURVES = {
    "P-256": _Curve(
        "ES256",
        32,
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    ),
    "P-384": _Curve(
        "ES384",
        48,
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
    ),
    "P-521": _Curve(
        "ES512",
        66,
        2**521 - 1,
        0x0051953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109E156193951EC7E937B1652C0BD3BB1BF073573DF883D2C34F1EF451FD46B503F00,
    ),
}


class JwksError(ValueError):
    """The text is not a usable key set."""


class KeySet(NamedTuple):
    """The keys as canonical JSON text, and why others are left out."""

    text: str
    skipped: tuple[str, ...]


def parse_jwks(text: str) -> KeySet:
    """Return the usable keys. Raises JwksError if there are none."""
    if len(text) > MAX_JWKS_BYTES:
        raise JwksError(f"has over {MAX_JWKS_BYTES} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise JwksError("is not JSON") from None
    keys = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(keys, list) or not 0 < len(keys) <= MAX_KEYS:
        raise JwksError(f"has no list of 1 to {MAX_KEYS} keys")
    found, skipped = [], []
    for number, key in enumerate(keys):
        try:
            found.append(_key(key))
        except JwksError as error:
            skipped.append(f"keys[{number}] {error}")
    if not found:
        raise JwksError(f"has no usable key: {skipped[0]}")
    return KeySet(json.dumps({"keys": found}, sort_keys=True), tuple(skipped))


def _key(key: Any) -> dict[str, str]:
    if not isinstance(key, dict):
        raise JwksError("is not an object")
    kind = _text(key, "kty")
    parse = _PARSERS.get(kind)
    if parse is None:
        raise JwksError(f"has kty {kind!r:.40}, want RSA, EC or OKP")
    found = {"kty": kind, **parse(key)}
    for name in ("kid", "alg"):
        if key.get(name) is not None:
            found[name] = _text(key, name)
            if len(found[name]) > MAX_NAME_CHARS or not _is_plain(found[name]):
                raise JwksError(
                    f"has a {name} that is not at most {MAX_NAME_CHARS} ASCII characters"
                )
    return found


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _rsa(key: dict[str, Any]) -> dict[str, str]:
    modulus, exponent = _number(key, "n"), _number(key, "e")
    if modulus.bit_length() not in _RSA_BITS or modulus % 2 == 0:
        raise JwksError(f"has a modulus of {modulus.bit_length()} bits")
    if exponent not in _RSA_EXPONENTS:
        raise JwksError("has another exponent than 3 and 65537")
    if key.get("alg") is not None and key["alg"] not in _RSA_ALGORITHMS:
        raise JwksError(f"has alg {key['alg']!r:.40}, want one of {', '.join(_RSA_ALGORITHMS)}")
    return {"n": _encoded(modulus), "e": _encoded(exponent)}


def _ec(key: dict[str, Any]) -> dict[str, str]:
    name = _text(key, "crv")
    curve = _CURVES.get(name)
    if curve is None:
        raise JwksError(f"has crv {name!r:.40}, want one of {', '.join(_CURVES)}")
    if key.get("alg") not in (None, curve.algorithm):
        raise JwksError(f"has alg {key['alg']!r:.40}, want {curve.algorithm}")
    x, y = _number(key, "x"), _number(key, "y")
    if max(x, y) >= curve.p or (y * y - (x**3 - 3 * x + curve.b)) % curve.p:
        raise JwksError(f"is not a point of {name}")
    return {"crv": name, "x": _encoded(x, curve.size), "y": _encoded(y, curve.size)}


def _okp(key: dict[str, Any]) -> dict[str, str]:
    data = _bytes(key, "x")
    if _text(key, "crv") != "Ed25519" or len(data) != _ED25519_BYTES:
        raise JwksError("is not a key of Ed25519")
    if key.get("alg") not in (None, "EdDSA"):
        raise JwksError(f"has alg {key['alg']!r:.40}, want EdDSA")
    return {"crv": "Ed25519", "x": _base64(data)}


_PARSERS: dict[str, Callable[[dict[str, Any]], dict[str, str]]] = {
    "RSA": _rsa,
    "EC": _ec,
    "OKP": _okp,
}


def _text(key: dict[str, Any], name: str) -> str:
    value = key.get(name)
    if not isinstance(value, str):
        raise JwksError(f"has no text {name}")
    return value


def _bytes(key: dict[str, Any], name: str) -> bytes:
    text = _text(key, name)
    try:
        return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (Base64Error, UnicodeEncodeError):
        raise JwksError(f"has a {name} that is not base64url") from None


def _number(key: dict[str, Any], name: str) -> int:
    return int.from_bytes(_bytes(key, name), "big")


def _encoded(number: int, size: int = 0) -> str:
    return _base64(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
