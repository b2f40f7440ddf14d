# SPDX-License-Identifier: Apache-2.0
"""Finds the protobuf descriptors that are linked into a program, such as Envoy. Pure.

protoc's C++ code registers each .proto file as a serialized `FileDescriptorProto`, which begins
with its field 1, the file's name. A candidate is accepted if its fields are those of a
FileDescriptorProto up to its end, and if it parses to a file of that name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

MAX_FILE_BYTES = 4 << 20  # of one descriptor; the largest of Envoy 1.40 has 60 KB
MAX_FILES = 4096  # Envoy 1.40 has 559

# Field number -> wire types, of google/protobuf/descriptor.proto, FileDescriptorProto.
_VARINT, _LENGTH = 0, 2
_WIRE_TYPES = {
    **dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15), (_LENGTH,)),
    **dict.fromkeys((10, 11), (_VARINT, _LENGTH)),  # packed or not
    14: (_VARINT,),
}
_START = re.compile(rb"\n([\x07-\x7f])([a-zA-Z0-9_./-]{2,122}\.proto)")


class ScanError(Exception):
    """The program has no usable descriptors."""


def scan(program: bytes) -> dict[str, bytes]:
    """The serialized descriptors by file name. `program` may be an mmap.

    Raises ScanError if there are more than MAX_FILES.
    """
    found: dict[str, bytes] = {}
    for start, name in _candidates(program):
        octets = bytes(program[start : _end(program, start)])
        if len(octets) > len(found.get(name, b"")) and _is_file(octets, name):
            found[name] = octets
            if len(found) > MAX_FILES:
                raise ScanError(f"more than {MAX_FILES} protobuf descriptors")
    return found


def _candidates(program: bytes) -> Iterator[tuple[int, str]]:
    for match in _START.finditer(program):
        begin, length = match.start(2), match[1][0]
        name = bytes(program[begin : begin + length])
        if name.endswith(b".proto"):
            yield match.start(), name.decode("ascii", "replace")


def _is_file(octets: bytes, name: str) -> bool:
    try:
        return bool(descriptor_pb2.FileDescriptorProto.FromString(octets).name == name)
    except DecodeError:
        return False


def _end(program: bytes, at: int) -> int:
    """The end of the longest run of fields of one FileDescriptorProto from `at`."""
    begin, has_name = at, False
    while at - begin <= MAX_FILE_BYTES:
        try:
            tag, value = _varint(program, at)
            number, wire_type = tag >> 3, tag & 7
            if wire_type not in _WIRE_TYPES.get(number, ()) or (number == 1 and has_name):
                break
            size, following = _varint(program, value)
        except (ValueError, IndexError):
            break
        if wire_type == _LENGTH:
            following += size
            if size > MAX_FILE_BYTES or following > len(program):
                break
        has_name = has_name or number == 1
        at = following
    return at


def _varint(program: bytes, at: int) -> tuple[int, int]:
    """The value and the offset after it. Raises ValueError, IndexError."""
    result = shift = 0
    while shift < 64:
        octet = program[at]
        at += 1
        result |= (octet & 0x7F) << shift
        if octet < 0x80:
            return result, at
        shift += 7
    raise ValueError("varint too long")
