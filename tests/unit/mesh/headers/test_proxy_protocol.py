# SPDX-License-Identifier: Apache-2.0
"""The PROXY v2 header of a connection to a waypoint's Envoy."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.mesh.headers.proxy_protocol import (
    MAX_VALUE_BYTES,
    TLV_IDENTITY,
    TLV_WORKLOAD,
    ProxyProtocolError,
    encode_proxy_header,
    parse_proxy_header,
)
from ztunnel.mesh.model import SocketAddress

CLIENT4 = SocketAddress("10.1.0.5", 41000)
VIP4 = SocketAddress("10.96.0.10", 80)
CLIENT6 = SocketAddress("fd00::5", 41000)
VIP6 = SocketAddress("fd00:96::10", 80)
ports = st.integers(0, 65535)
sockets4 = st.builds(SocketAddress, st.ip_addresses(v=4).map(str), ports)
sockets6 = st.builds(SocketAddress, st.ip_addresses(v=6, network="fd00::/8").map(str), ports)
tlvs = st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=300)), max_size=8)


def test_exact_bytes_of_an_ipv4_header() -> None:
    header = encode_proxy_header(CLIENT4, VIP4, ((TLV_IDENTITY, b"spiffe://td/ns/a/sa/b"),))
    assert (
        header
        == bytes.fromhex("0d0a0d0a000d0a515549540a211100240a0100050a60000aa0280050d00015")
        + b"spiffe://td/ns/a/sa/b"
    )


def test_exact_bytes_of_an_ipv6_header() -> None:
    header = encode_proxy_header(CLIENT6, VIP6, ())
    assert header == bytes.fromhex("0d0a0d0a000d0a515549540a21210024") + (
        IPv6Address("fd00::5").packed + IPv6Address("fd00:96::10").packed
    ) + (41000).to_bytes(2, "big") + (80).to_bytes(2, "big")


@given(st.one_of(st.tuples(sockets4, sockets4), st.tuples(sockets6, sockets6)), tlvs, st.binary())
def test_header_is_parsed_back_and_payload_is_left(
    pair: tuple[SocketAddress, SocketAddress], values: list[tuple[int, bytes]], payload: bytes
) -> None:
    header = encode_proxy_header(*pair, tuple(values))
    parsed = parse_proxy_header(header + payload)
    assert parsed is not None
    assert (parsed.source, parsed.destination, parsed.tlvs) == (*pair, tuple(values))
    assert parsed.size == len(header)
    assert all(parse_proxy_header(header[:size]) is None for size in range(0, len(header), 7))


def test_empty_values_are_left_out() -> None:
    header = encode_proxy_header(CLIENT4, VIP4, ((TLV_IDENTITY, b""), (TLV_WORKLOAD, b"web")))
    parsed = parse_proxy_header(header)
    assert parsed is not None
    assert parsed.tlvs == ((TLV_WORKLOAD, b"web"),)


def test_source_of_the_other_family_does_not_change_the_destination() -> None:
    mapped = parse_proxy_header(encode_proxy_header(CLIENT4, VIP6, ()))
    assert mapped is not None
    assert (mapped.source, mapped.destination) == (CLIENT4, VIP6)
    unknown = parse_proxy_header(encode_proxy_header(CLIENT6, VIP4, ()))
    assert unknown is not None
    assert unknown.destination == VIP4
    assert unknown.source == SocketAddress(str(IPv4Address(0)), CLIENT6.port)


def test_identity_is_never_truncated() -> None:
    with pytest.raises(ProxyProtocolError, match="2049 bytes"):
        encode_proxy_header(CLIENT4, VIP4, ((TLV_IDENTITY, b"x" * (MAX_VALUE_BYTES + 1)),))


@given(st.binary(max_size=200))
def test_other_bytes_are_rejected_or_incomplete(data: bytes) -> None:
    signature = b"\r\n\r\n\x00\r\nQUIT\n"
    for text in (data, signature + data, signature + b"\x21\x11" + data):
        try:
            parsed = parse_proxy_header(text)
        except ProxyProtocolError:
            continue
        assert parsed is None or parsed.size <= len(text)
