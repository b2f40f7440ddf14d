# SPDX-License-Identifier: Apache-2.0
"""The path of a connect-udp request."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.mesh.address import AddressError
from ztunnel.mesh.headers.connect_udp import format_target, parse_target
from ztunnel.mesh.model import SocketAddress


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (SocketAddress("192.0.2.6", 443), "/.well-known/masque/udp/192.0.2.6/443/"),
        (SocketAddress("2001:db8::42", 443), "/.well-known/masque/udp/2001%3Adb8%3A%3A42/443/"),
    ],
)
def test_paths_have_the_form_of_rfc_9298(target: SocketAddress, path: str) -> None:
    assert format_target(target) == path
    assert parse_target(path.encode()) == target


@given(st.ip_addresses().map(str), st.integers(1, 65535))
def test_round_trip(ip: str, port: int) -> None:
    if ip.startswith("::ffff:"):
        return
    target = SocketAddress(ip, port)
    assert parse_target(format_target(target).encode()) == target


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"/.well-known/masque/udp/192.0.2.6/443",
        b"/.well-known/masque/udp/192.0.2.6/443/x",
        b"/.well-known/masque/udp/192.0.2.6/443//",
        b"/.well-known/masque/udp/192.0.2.6/0/",
        b"/.well-known/masque/udp/192.0.2.6/65536/",
        b"/.well-known/masque/udp/example.com/443/",
        b"/.well-known/masque/udp/*/443/",
        b"/.well-known/masque/ip/192.0.2.6/443/",
        b"/.well-known/masque/udp/fe80%3A%3A1%25eth0/443/",
        b"/.well-known/masque/udp/192.0.2.6/443/?x=1",
        b"/.well-known/masque/udp/" + b"1" * 500 + b"/443/",
        b"x/.well-known/masque/udp/192.0.2.6/443/",
    ],
)
def test_any_other_path_is_rejected(path: bytes) -> None:
    with pytest.raises(AddressError):
        parse_target(path)


@given(st.binary(max_size=120))
def test_any_path_is_an_address_and_a_port_or_an_address_error(tail: bytes) -> None:
    for path in (tail, b"/.well-known/masque/udp/" + tail):
        try:
            found = parse_target(path)
        except AddressError:
            continue
        assert ipaddress.ip_address(found.ip).compressed == found.ip
        assert 0 < found.port < 1 << 16
        assert path.startswith(b"/.well-known/masque/udp/")
