# SPDX-License-Identifier: Apache-2.0
"""Reassembles the byte streams of a capture. Reads classic pcap with Ethernet and TCP."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

_MAGIC = 0xA1B2C3D4
_ETHERNET = 1
_TCP = 6
TLS_TYPES = frozenset((20, 21, 22, 23))  # RFC 8446 5.1: ccs, alert, handshake, application data


class Flow(NamedTuple):
    """One direction of a TCP connection."""

    source: str
    source_port: int
    target: str
    target_port: int


class Segment(NamedTuple):
    flow: Flow
    sequence: int
    payload: bytes


def streams(path: Path) -> dict[Flow, bytes]:
    """The bytes of each direction, up to the first gap."""
    parts: dict[Flow, dict[int, bytes]] = defaultdict(dict)
    for segment in _segments(path.read_bytes()):
        held = parts[segment.flow].get(segment.sequence, b"")
        parts[segment.flow][segment.sequence] = max(held, segment.payload, key=len)
    return {flow: _joined(found) for flow, found in parts.items()}


def tls_records(stream: bytes) -> list[int]:
    """The types of the TLS records of a stream. Raises AssertionError if it is not TLS."""
    types, at = [], 0
    while at + 5 <= len(stream):
        kind, version, length = struct.unpack_from("!BHH", stream, at)
        assert kind in TLS_TYPES, f"byte {at} is no TLS record: type {kind}"
        assert version >> 8 == 3, f"byte {at} is no TLS record: version {version:#06x}"
        assert length <= 16384 + 256, f"byte {at}: a record of {length} bytes"
        types.append(kind)
        at += 5 + length
    return types


def _joined(found: dict[int, bytes]) -> bytes:
    whole, following = b"", None
    for sequence in sorted(found):
        payload = found[sequence]
        if following is not None and sequence > following:
            break
        skip = 0 if following is None else following - sequence
        if skip < len(payload):
            whole += payload[skip:]
            following = sequence + len(payload)
    return whole


def _segments(data: bytes) -> Iterator[Segment]:
    magic, *_, linktype = struct.unpack_from("=IHHiIII", data)
    assert (magic, linktype) == (_MAGIC, _ETHERNET), f"not Ethernet in classic pcap: {linktype}"
    at = 24
    while at + 16 <= len(data):
        size = struct.unpack_from("=IIII", data, at)[2]
        segment = _segment(data[at + 16 : at + 16 + size])
        if segment is not None and segment.payload:
            yield segment
        at += 16 + size


def _segment(frame: bytes) -> Segment | None:
    ethertype = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    if ethertype == 0x0800 and packet[9] == _TCP:
        packet = packet[: int.from_bytes(packet[2:4], "big")]  # without Ethernet padding
        return _tcp(packet[12:16], packet[16:20], packet[(packet[0] & 15) * 4 :])
    if ethertype == 0x86DD and packet[6] == _TCP:
        return _tcp(packet[8:24], packet[24:40], packet[40:][: int.from_bytes(packet[4:6], "big")])
    return None


def _tcp(source: bytes, target: bytes, segment: bytes) -> Segment:
    source_port, target_port, sequence = struct.unpack_from("!HHI", segment)
    flow = Flow(str(ip_address(source)), source_port, str(ip_address(target)), target_port)
    return Segment(flow, sequence, segment[(segment[12] >> 4) * 4 :])
