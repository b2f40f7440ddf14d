# SPDX-License-Identifier: Apache-2.0
"""Addresses have one canonical form; CONNECT authorities are parsed strictly."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import addresses, mapped, ports, v4_texts, v6_addresses
from ztunnel.mesh.address import AddressError, canonical, family, parse_authority
from ztunnel.mesh.model import SocketAddress

near_authorities = st.text(alphabet="0123456789abcdefF.:[]%/@ \n\x00٣", max_size=80)


@given(addresses, ports)
def test_formatted_authority_parses_to_the_same_address(ip: str, port: int) -> None:
    address = SocketAddress(ip, port)
    assert parse_authority(str(address)) == address


@given(v4_texts, ports)
def test_v4_mapped_authority_is_the_ipv4_address(ip: str, port: int) -> None:
    assert parse_authority(f"[{mapped(ip)}]:{port}") == SocketAddress(ip, port)


@given(st.one_of(st.text(), near_authorities))
def test_any_text_parses_to_a_canonical_address_or_raises_address_error(text: str) -> None:
    try:
        address = parse_authority(text)
    except AddressError:
        return
    assert address.ip == canonical(address.ip)
    assert 0 < address.port < 65536


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:99999",
        "10.0.0.1:100000",
        "10.0.0.1:080",
        "10.0.0.1:+80",
        "10.0.0.1:8_0",
        "10.0.0.1:٨٠",
        "10.0.0.1:-1",
        "10.0.0.1:80 ",
        " 10.0.0.1:80",
        "10.0.0.1:80\n",
        "10.0.0.1:80\x00",
        "10.0.0.1:80/",
        "10.0.0.1:80:80",
        "10.0.0.01:80",
        "010.0.0.1:80",
        "10.0.0:80",
        "10.0.0.1.1:80",
        "10.0.0.256:80",
        "10.1:80",
        "167772161:80",
        "0x0a.0.0.1:80",
        "[10.0.0.1]:80",
        "user@10.0.0.1:80",
        "http://10.0.0.1:80",
        "localhost:80",
        "my-app.shop.svc.cluster.local:80",
        "fd00::1:80",
        "[fd00::1]",
        "[fd00::1]80",
        "[fd00::1]:0",
        "[fd00::1]:65536",
        "[fd00::1:80",
        "fd00::1]:80",
        "[[fd00::1]]:80",
        "[]:80",
        "[fd00:::1]:80",
        "[fd00::1::2]:80",
        "[fd00::12345]:80",
        "[1:2:3:4:5:6:7]:80",
        "[1:2:3:4:5:6:7:8:9]:80",
        "[::ffff:10.0.0.01]:80",
        "[fe80::1%eth0]:80",
        "[fe80::1%25eth0]:80",
        "[" + "0" * 100 + "::1]:80",
    ],
)
def test_authority_other_than_ip_and_port_is_rejected(text: str) -> None:
    with pytest.raises(AddressError):
        parse_authority(text)


def test_longest_ipv6_authority_is_accepted() -> None:
    text = "[0000:0000:0000:0000:0000:ffff:255.255.255.255]:65535"
    assert parse_authority(text) == SocketAddress("255.255.255.255", 65535)


def test_minimum_and_maximum_port_are_accepted() -> None:
    assert parse_authority("10.0.0.1:1").port == 1
    assert parse_authority("[::1]:65535").port == 65535


@given(v6_addresses)
def test_every_spelling_of_an_ipv6_address_has_one_canonical_text(ip: object) -> None:
    assert isinstance(ip, IPv6Address)
    compressed, exploded = ip.compressed, ip.exploded
    assert canonical(compressed.upper()) == canonical(exploded) == canonical(compressed)


@given(addresses)
def test_canonical_is_a_fixed_point(ip: str) -> None:
    assert canonical(ip) == ip


@given(v4_texts)
def test_v4_mapped_is_canonically_ipv4(ip: str) -> None:
    assert canonical(mapped(ip)) == canonical(mapped(ip).upper()) == ip
    assert family(canonical(mapped(ip))) == 4


@given(st.text())
def test_canonical_of_any_text_is_an_address_or_raises_address_error(text: str) -> None:
    try:
        result = canonical(text)
    except AddressError:
        return
    assert canonical(result) == result


@pytest.mark.parametrize(
    "text", ["fe80::1%eth0", "fe80::1%", "%eth0", "10.0.0.1/32", "fd00::/64", "my-app", "::ffff:0:"]
)
def test_scope_ids_prefixes_and_names_are_rejected(text: str) -> None:
    with pytest.raises(AddressError):
        canonical(text)


@pytest.mark.parametrize(("ip", "wanted"), [("0.0.0.0", 4), ("10.0.0.1", 4), ("::", 6), ("::1", 6)])
def test_family_of_a_canonical_address(ip: str, wanted: int) -> None:
    assert family(ip) == wanted
