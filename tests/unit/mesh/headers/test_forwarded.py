# SPDX-License-Identifier: Apache-2.0
"""The `forwarded` header: formatting, parsing, and rejection of everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import addresses, ports
from ztunnel.mesh.headers import forwarded
from ztunnel.mesh.headers.forwarded import (
    MAX_FORWARDED_BYTES,
    Forwarded,
    ForwardedError,
    format_forwarded,
    parse_forwarded,
)
from ztunnel.mesh.model import SocketAddress

CLIENT = SocketAddress("10.0.0.1", 80)
hosts = st.from_regex(r"[A-Za-z0-9._/-]{0,253}", fullmatch=True)
near_headers = st.text(alphabet='for=host"10.0.0.1:80[fd::];, \t\\\n\x00', max_size=100)


@given(addresses, ports, hosts)
def test_formatted_header_parses_back(ip: str, port: int, host: str) -> None:
    said = Forwarded(SocketAddress(ip, port), host)
    assert parse_forwarded(format_forwarded(said.client, host).encode()) == said


@given(st.one_of(st.binary(max_size=600), near_headers.map(str.encode)))
def test_any_bytes_parse_or_raise_forwarded_error(value: bytes) -> None:
    for candidate in (value, b'for="10.0.0.1:80"' + value):
        try:
            found = parse_forwarded(candidate)
        except ForwardedError:
            continue
        assert 0 < found.client.port < 65536
        assert found.host.isprintable()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'for="10.0.0.1:80"', Forwarded(CLIENT)),
        (b"for=10.0.0.1:80", Forwarded(CLIENT)),
        (b'For="10.0.0.1:80"', Forwarded(CLIENT)),
        (b'host=web;for="10.0.0.1:80"', Forwarded(CLIENT, "web")),
        (b'for="10.0.0.1:80";host=web.shop', Forwarded(CLIENT, "web.shop")),
        (b'for="10.0.0.1:80"; host="web"', Forwarded(CLIENT, "web")),
        (b'for="10.0.0.1:80";proto=http', Forwarded(CLIENT)),
        (b'for="10.0.0.1:80", for="10.9.9.9:9"', Forwarded(CLIENT)),
        (b'for="[::ffff:10.0.0.1]:80"', Forwarded(CLIENT)),
        (b'for="[fd00::1]:80"', Forwarded(SocketAddress("fd00::1", 80))),
    ],
)
def test_rfc_7239_forms_are_parsed(value: bytes, expected: Forwarded) -> None:
    assert parse_forwarded(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b";",
        b",",
        b"for",
        b"for=",
        b'for=""',
        b'for="10.0.0.1"',
        b"for=unknown",
        b"for=_hidden",
        b'for="10.0.0.1:0"',
        b'for="10.0.0.1:80',
        b'for=10.0.0.1:80"',
        b"for='10.0.0.1:80'",
        b'for="10.0.0.1:80"x',
        b'for="10.0.0.1\\:80"',
        b'for="10.0.0.1:80";',
        b'for="10.0.0.1:80";for="10.9.9.9:9"',
        b'for="10.0.0.1:80";FOR="10.9.9.9:9"',
        b'for="10.0.0.1:80";host=a;host=b',
        b'for="10.0.0.1:80";host="a b"',
        b'for="10.0.0.1:80";host="a\nb"',
        b'for="10.0.0.1:80";host="a\x1b[31m"',
        b'for="10.0.0.1:80";host=' + b"a" * 321,
        b'for = "10.0.0.1:80"',
        b'by="10.0.0.1:80"',
        b', for="10.0.0.1:80"',
        b'for="fd00::1:80"',
        'for="10.0.0.1:80";host=wéb'.encode(),
    ],
)
def test_header_without_valid_client_is_rejected(value: bytes) -> None:
    with pytest.raises(ForwardedError):
        parse_forwarded(value)


def test_oversized_header_is_rejected() -> None:
    said = b'for="10.0.0.1:80";x="'
    fits = said + b"a" * (MAX_FORWARDED_BYTES - len(said) - 1) + b'"'
    assert parse_forwarded(fits) == Forwarded(CLIENT)
    with pytest.raises(ForwardedError, match="513 bytes; limit 512"):
        parse_forwarded(said + b"a" * (MAX_FORWARDED_BYTES - len(said)) + b'"')


@given(addresses, ports, st.text(alphabet='web.shop;host=",/ ', max_size=30))
def test_fast_parser_agrees_with_the_full_parser(ip: str, port: int, rest: str) -> None:
    for text in (f'for="{SocketAddress(ip, port)}"{rest}', f'for="{ip}";host={rest}'):
        short = forwarded._parse_own_format(text)
        if short:
            assert short == forwarded._parse_pairs(text)
