# SPDX-License-Identifier: Apache-2.0
"""Hashes of objects, and the suffixes of generated names."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # k8s.io/apimachinery/pkg/util/rand: without vowels


def digest(value: Any) -> str:
    """A SHA-256 hash of plain data, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def name_suffix(hexdigest: str, length: int) -> str:
    """A suffix of `length` characters for a generated name."""
    number = int(hexdigest, 16)
    letters = []
    for _ in range(length):
        number, remainder = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[remainder])
    return "".join(letters)
