# SPDX-License-Identifier: Apache-2.0
"""Parses IP addresses and `ip:port` strings into one canonical form."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from ztunnel.mesh.model import SocketAddress

_MAX_TEXT = 64  # "[" + 45 characters of the longest IPv6 text + "]:65535", rounded up


class AddressError(ValueError):
    """The text is not an IP address, or not `ip:port`."""


@lru_cache(maxsize=4096)  # parsing IPv6 takes as long as the rest of a routing decision
def canonical(text: str) -> str:
    """Return the canonical form: IPv6 compressed and lower case, v4-mapped IPv6 as IPv4.

    Raises AddressError, also for scope IDs, which have no meaning on another host.
    """
    try:
        if ":" not in text:
            return str(IPv4Address(text))
        if "%" in text:
            raise AddressError(f"{text!r} has a scope ID")
        address = IPv6Address(text)
    except AddressValueError as error:
        raise AddressError(f"{text!r} is not an IP address") from error
    return str(address.ipv4_mapped or address)


def family(ip: str) -> int:
    """Return the address family, 4 or 6, of a canonical address."""
    return 6 if ":" in ip else 4


def parse_authority(text: str) -> SocketAddress:
    """Parse exactly `a.b.c.d:port` or `[ipv6]:port`, the authority of CONNECT (RFC 9113, 8.5).

    Host names, user info, paths, empty or zero ports and leading zeros raise AddressError.
    """
    host, _, digits = text.rpartition(":") if len(text) <= _MAX_TEXT else ("", "", "")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        ip = host[1:-1]
    else:
        ip = host if ":" not in host else ""
    port = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 5 else 0
    if not ip or not 0 < port <= 65535 or digits[0] == "0":
        raise AddressError(f"{text[:_MAX_TEXT]!r} is not ip:port")
    return SocketAddress(canonical(ip), port)
