# SPDX-License-Identifier: Apache-2.0
"""The target of a connect-udp request, encoded in its path (RFC 9298, 3.1)."""

from __future__ import annotations

from ztunnel.mesh.address import AddressError, parse_authority
from ztunnel.mesh.model import SocketAddress

PROTOCOL = b"connect-udp"  # the upgrade token, RFC 9298 3
_PREFIX = "/.well-known/masque/udp/"  # of the default URI template, RFC 9298, 3
_MAX_PATH_BYTES = 160  # fits the longest IPv6 address with each colon escaped


def format_target(target: SocketAddress) -> str:
    """Format the path of a request for UDP to `target`."""
    host = target.ip.replace(":", "%3A")  # a colon must be escaped in the template's variable
    return f"{_PREFIX}{host}/{target.port}/"


def parse_target(path: bytes) -> SocketAddress:
    """Parse exactly `/.well-known/masque/udp/{ip}/{port}/`. Raises AddressError."""
    parts = path[:_MAX_PATH_BYTES].decode("latin-1").removeprefix(_PREFIX).split("/")
    if (
        len(path) > _MAX_PATH_BYTES
        or not path.startswith(_PREFIX.encode())
        or len(parts) != 3
        or parts[2]
    ):
        raise AddressError(f"{path[:64]!r} is not a connect-udp path")
    host = parts[0].replace("%3A", ":").replace("%3a", ":")
    return parse_authority(f"[{host}]:{parts[1]}" if ":" in host else f"{host}:{parts[1]}")
