# SPDX-License-Identifier: Apache-2.0
"""The PROXY protocol header, version 2, that precedes a connection to a waypoint's Envoy.

    signature (12) │ version, command │ family, protocol │ length (2) │ addresses │ TLVs

The source is the client, the destination is what the client dialed. The TLVs are facts that the
proxy has verified. Specification: haproxy.org, proxy-protocol.txt, section 2.2. TLV 0xD0 is
Istio's number; 0xE0 to 0xEF are for custom use (section 2.2.8).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from ztunnel.mesh.model import SocketAddress

TLV_IDENTITY = 0xD0  # the client's SPIFFE ID, as the mTLS peer has proven it
TLV_WORKLOAD = 0xE0
TLV_NAMESPACE = 0xE1
TLV_APP = 0xE2  # the client's canonical service
TLV_VERSION = 0xE3  # the client's canonical revision
TLV_TRACEPARENT = 0xE4  # of the tunnel's CONNECT, W3C trace context

MAX_VALUE_BYTES = 2048  # of a TLV: a SPIFFE ID has at most 2048 bytes (SPIFFE ID standard, 2.3)
MAX_HEADER_BYTES = 16 * 1024  # of the whole header; the protocol's own limit is 65,551

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXY_V2 = b"\x21"  # version 2, command PROXY
_TCP4 = 0x11
_TCP6 = 0x21
_PREFIX_BYTES = 16
_IP_BYTES = {_TCP4: 4, _TCP6: 16}
_MAPPED = b"\x00" * 10 + b"\xff\xff"


class ProxyProtocolError(ValueError):
    """The bytes are no header of this form, or the facts do not fit into one."""


class ProxyHeader(NamedTuple):
    """A parsed header; `size` is its length in bytes."""

    source: SocketAddress
    destination: SocketAddress
    tlvs: tuple[tuple[int, bytes], ...]
    size: int


def encode_proxy_header(
    source: SocketAddress, destination: SocketAddress, tlvs: tuple[tuple[int, bytes], ...]
) -> bytes:
    """Encode a header. Empty values are left out. Raises ProxyProtocolError if it is too long.

    The family is that of the destination, because Envoy selects by it. A source of the other
    family is v4-mapped in a header of IPv6, and unspecified in one of IPv4.
    """
    family = _TCP6 if ":" in destination.ip else _TCP4
    parts = [
        _packed(source.ip, family),
        _packed(destination.ip, family),
        source.port.to_bytes(2, "big"),
        destination.port.to_bytes(2, "big"),
    ]
    for kind, value in tlvs:
        if len(value) > MAX_VALUE_BYTES:
            raise ProxyProtocolError(f"TLV {kind:#x} has {len(value)} bytes")
        if value:
            parts.append(bytes((kind,)) + len(value).to_bytes(2, "big") + value)
    body = b"".join(parts)
    if _PREFIX_BYTES + len(body) > MAX_HEADER_BYTES:
        raise ProxyProtocolError(f"the header has {_PREFIX_BYTES + len(body)} bytes")
    return b"".join((_SIGNATURE, _PROXY_V2, bytes((family,)), len(body).to_bytes(2, "big"), body))


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Parse the header at the start of `data`; None if it is incomplete.

    Raises ProxyProtocolError if the bytes are anything else than a header that
    `encode_proxy_header` can return.
    """
    if not data.startswith(_SIGNATURE[: len(data)]):
        raise ProxyProtocolError(f"{data[:16]!r} is not a PROXY header of version 2")
    if len(data) < _PREFIX_BYTES:
        return None
    family, length = data[13], int.from_bytes(data[14:16], "big")
    if data[12:13] != _PROXY_V2 or family not in _IP_BYTES:
        raise ProxyProtocolError(f"{data[12:14]!r} is not version 2, PROXY, TCP")
    width, size = _IP_BYTES[family], _PREFIX_BYTES + length
    if length < 2 * width + 4 or size > MAX_HEADER_BYTES:
        raise ProxyProtocolError(f"the length is {length}")
    if len(data) < size:
        return None
    ports = _PREFIX_BYTES + 2 * width
    return ProxyHeader(
        _address(data[_PREFIX_BYTES : _PREFIX_BYTES + width], data[ports : ports + 2]),
        _address(data[_PREFIX_BYTES + width : ports], data[ports + 2 : ports + 4]),
        _tlvs(data[ports + 4 : size]),
        size,
    )


def _packed(ip: str, family: int) -> bytes:
    if ":" in ip:
        return IPv6Address(ip).packed if family == _TCP6 else bytes(4)
    packed = IPv4Address(ip).packed
    return packed if family == _TCP4 else _MAPPED + packed


def _address(packed: bytes, port: bytes) -> SocketAddress:
    number = int.from_bytes(port, "big")
    if packed.startswith(_MAPPED):
        packed = packed[len(_MAPPED) :]
    ip = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
    return SocketAddress(str(ip), number)


def _tlvs(data: bytes) -> tuple[tuple[int, bytes], ...]:
    found: list[tuple[int, bytes]] = []
    position = 0
    while position < len(data):
        start = position + 3
        end = start + int.from_bytes(data[position + 1 : start], "big")
        if start > len(data) or end > len(data) or end - start > MAX_VALUE_BYTES:
            raise ProxyProtocolError(f"the TLV at byte {position} is too long")
        found.append((data[position], data[start:end]))
        position = end
    return tuple(found)
