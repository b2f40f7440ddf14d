# SPDX-License-Identifier: Apache-2.0
"""A parsed Forwarded header is a canonical address and a valid host, and survives a round trip."""

from __future__ import annotations

from tests.fuzz.target import Target, separated
from ztunnel.mesh.address import canonical
from ztunnel.mesh.headers.forwarded import ForwardedError, format_forwarded, parse_forwarded


def check(octets: bytes) -> None:
    try:
        found = parse_forwarded(octets)
    except ForwardedError:
        return
    assert canonical(found.client.ip) == found.client.ip
    assert 0 < found.client.port < 65536
    assert len(found.host) <= 320
    assert not set(found.host) & set('";, \r\n\0')
    assert parse_forwarded(format_forwarded(found.client, found.host).encode()) == found


TARGET = Target(
    check,
    seeds=(
        b'for="10.244.1.7:41234"',
        b'for="[fd00::7]:41234";host=web.shop.svc.cluster.local',
        b'for="[::ffff:10.0.0.1]:1";proto=https;by="_x"',
        b"FOR=10.0.0.1:80;host=[fd00::1]:80, for=10.0.0.2:1",
    ),
    mutate=separated(
        b";",
        [b'for="10.0.0.1:1"', b'for="[::1%25a]:1"', b"host=", b'host=""', b'by="a"', b"", b"="],
    ),
    words=(b"for=", b"host=", b"by=", b"proto=", b'"', b"[", b"]:", b"::ffff:", b"%eth0", b"\\"),
    max_len=600,
)
