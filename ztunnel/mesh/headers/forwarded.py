# SPDX-License-Identifier: Apache-2.0
"""The `forwarded` header of HBONE: `for="ip:port"[;host=service]` (RFC 7239)."""

from __future__ import annotations

import re
from typing import NamedTuple

from ztunnel.mesh.address import AddressError, parse_authority
from ztunnel.mesh.model import SocketAddress

MAX_FORWARDED_BYTES = 512  # fits two addresses and a DNS name
_PAIR = re.compile(r'\s*([A-Za-z]{1,16})=(?:"([^"\\]*)"|([^";,\s]*))\s*')
_HOST = re.compile(r"[A-Za-z0-9.:_\[\]/-]{0,320}")


class ForwardedError(ValueError):
    """The header is malformed or names no client."""


class Forwarded(NamedTuple):
    """The client's address and the host that it dialed (empty if absent)."""

    client: SocketAddress
    host: str = ""


def format_forwarded(client: SocketAddress, host: str = "") -> str:
    """Format the header value."""
    return f'for="{client}"' + (f";host={host}" if host else "")


def parse_forwarded(value: bytes) -> Forwarded:
    """Parse the first element of a header value. Raises ForwardedError."""
    if len(value) > MAX_FORWARDED_BYTES:
        raise ForwardedError(f"{len(value)} bytes; limit {MAX_FORWARDED_BYTES}")
    try:
        text = value.decode("ascii")
        pairs = _parse_own_format(text) or _parse_pairs(text)
        client = parse_authority(pairs["for"])
    except (UnicodeDecodeError, KeyError, AddressError) as error:
        raise ForwardedError(f"{value[:64]!r} names no client") from error
    host = pairs.get("host", "")
    if not _HOST.fullmatch(host):
        raise ForwardedError(f"host {host[:64]!r} is not a host")
    return Forwarded(client, host)


def _parse_own_format(text: str) -> dict[str, str]:
    """Parse the output of `format_forwarded` quickly; empty for every other form."""
    if not text.startswith('for="'):
        return {}
    client, _, rest = text[5:].partition('"')
    if not rest and text.endswith('"'):
        return {"for": client}
    host = rest.removeprefix(";host=")
    if host == rest or not host or not _HOST.fullmatch(host):
        return {}
    return {"for": client, "host": host}


def _parse_pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.partition(",")[0].split(";"):
        match = _PAIR.fullmatch(part)
        if match is None:
            raise ForwardedError(f"{part[:64]!r} is not a pair")
        name = match[1].lower()
        if name in found:
            raise ForwardedError(f"{name} occurs twice")
        found[name] = match[2] if match[2] is not None else match[3]
    return found
