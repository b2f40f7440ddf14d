# SPDX-License-Identifier: Apache-2.0
"""The target of a connect-udp request, as its path says it (RFC 9298 3.1)."""

from __future__ import annotations

from ztunnel.mesh.address import AddressError, parse_authority
from ztunnel.mesh.model import SocketAddress

PROTOCOL = b"connect-udp"  # the upgrade token, RFC 9298 3
_PREFIX = "/.well-known/masque/udp/"  # the default template's, RFC 9298 3
_MAX_PATH = 160  # octets; the longest address with each colon as three octets fits


def format_target(target: SocketAddress) -> str:
    """The path that asks for UDP to `target`."""
    host = target.ip.replace(":", "%3A")  # a colon must be escaped in the template's variable
    return f"{_PREFIX}{host}/{target.port}/"


def parse_target(path: bytes) -> SocketAddress:
    """Strictly `/.well-known/masque/udp/{ip}/{port}/`. Raises AddressError."""
    parts = path[:_MAX_PATH].decode("latin-1").removeprefix(_PREFIX).split("/")
    if (
        len(path) > _MAX_PATH
        or not path.startswith(_PREFIX.encode())
        or len(parts) != 3
        or parts[2]
    ):
        raise AddressError(f"{path[:64]!r} asks for no UDP")
    host = parts[0].replace("%3A", ":").replace("%3a", ":")
    return parse_authority(f"[{host}]:{parts[1]}" if ":" in host else f"{host}:{parts[1]}")
