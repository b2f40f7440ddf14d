# SPDX-License-Identifier: Apache-2.0
"""Serialized protobuf messages assembled from serialized parts. Pure.

A message is the concatenation of its fields, and fields of a repeated message may be anywhere in
it. A resource with hundreds of parts, of which one changed, therefore needs one part encoded.
"""

from __future__ import annotations

from collections.abc import Iterable

_LENGTH_DELIMITED = 2  # wire type


def varint(value: int) -> bytes:
    """An unsigned integer in base 128, least significant group first."""
    octets = bytearray()
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def field(number: int, octets: bytes) -> bytes:
    """A field of type message, bytes or string."""
    return b"".join((varint(number << 3 | _LENGTH_DELIMITED), varint(len(octets)), octets))


def repeated(number: int, values: Iterable[bytes]) -> bytes:
    """A repeated field of one of these types."""
    return b"".join(field(number, each) for each in values)


def text(number: int, value: str) -> bytes:
    """A string; nothing if it is empty, as in proto3."""
    return field(number, value.encode()) if value else b""
