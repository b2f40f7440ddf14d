# SPDX-License-Identifier: Apache-2.0
"""The `forwarded` header of HBONE: `for="ip:port"[;host=service]` (RFC 7239)."""

from __future__ import annotations

import re
from typing import NamedTuple

from ztunnel.mesh.address import AddressError, parse_authority
from ztunnel.mesh.model import SocketAddress

MAX_FORWARDED = 512  # bytes; two addresses and a DNS name fit well
_PAIR = re.compile(r'\s*([A-Za-z]{1,16})=(?:"([^"\\]*)"|([^";,\s]*))\s*')
_HOST = re.compile(r"[A-Za-z0-9.:_\[\]/-]{0,320}")


class ForwardedError(ValueError):
    """A header that says nothing we could use."""


class Forwarded(NamedTuple):
    """The client's address and the host it dialled (empty when not said)."""

    client: SocketAddress
    host: str = ""


def format_forwarded(client: SocketAddress, host: str = "") -> str:
    """The header's value."""
    return f'for="{client}"' + (f";host={host}" if host else "")


def parse_forwarded(value: bytes) -> Forwarded:
    """Read a header's value, of which only the first element counts. Raises ForwardedError."""
    if len(value) > MAX_FORWARDED:
        raise ForwardedError(f"{len(value)} bytes; limit {MAX_FORWARDED}")
    try:
        text = value.decode("ascii")
        pairs = _ours(text) or _pairs(text)
        client = parse_authority(pairs["for"])
    except (UnicodeDecodeError, KeyError, AddressError) as error:
        raise ForwardedError(f"{value[:64]!r} names no client") from error
    host = pairs.get("host", "")
    if not _HOST.fullmatch(host):
        raise ForwardedError(f"host {host[:64]!r} is no host")
    return Forwarded(client, host)


def _ours(text: str) -> dict[str, str]:
    """What `format_forwarded` says; empty for all other forms, which are slower to read."""
    if not text.startswith('for="'):
        return {}
    client, _, rest = text[5:].partition('"')
    if not rest and text.endswith('"'):
        return {"for": client}
    host = rest.removeprefix(";host=")
    if host == rest or not host or not _HOST.fullmatch(host):
        return {}
    return {"for": client, "host": host}


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.partition(",")[0].split(";"):
        match = _PAIR.fullmatch(part)
        if match is None:
            raise ForwardedError(f"{part[:64]!r} is no pair")
        name = match[1].lower()
        if name in found:
            raise ForwardedError(f"{name} comes twice")
        found[name] = match[2] if match[2] is not None else match[3]
    return found
