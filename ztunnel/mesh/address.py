# SPDX-License-Identifier: Apache-2.0
"""IP addresses and `host:port` texts in one canonical form."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from ztunnel.mesh.model import SocketAddress

_MAX_TEXT = 64  # "[" + 45 characters of the longest IPv6 text + "]:65535", rounded up


class AddressError(ValueError):
    """A text that is no IP address, or no `ip:port`."""


@lru_cache(maxsize=4096)  # parsing IPv6 takes as long as all the rest of a decision
def canonical(text: str) -> str:
    """The one text of an address: IPv6 compressed and lower case, v4-mapped as IPv4.

    Raises AddressError; scope ids are refused, for they mean nothing on another host.
    """
    try:
        if ":" not in text:
            return str(IPv4Address(text))
        if "%" in text:
            raise AddressError(f"{text!r}: an address with a scope id")
        address = IPv6Address(text)
    except AddressValueError as error:
        raise AddressError(f"{text!r} is no IP address") from error
    return str(address.ipv4_mapped or address)


def family(ip: str) -> int:
    """4 or 6, of a canonical text."""
    return 6 if ":" in ip else 4


def parse_authority(text: str) -> SocketAddress:
    """Strictly `a.b.c.d:port` or `[ipv6]:port` (RFC 9113 section 8.5 for CONNECT).

    Names, user info, paths, empty or zero ports and leading zeros raise AddressError.
    """
    host, _, digits = text.rpartition(":") if len(text) <= _MAX_TEXT else ("", "", "")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        ip = host[1:-1]
    else:
        ip = host if ":" not in host else ""
    port = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 5 else 0
    if not ip or not 0 < port <= 65535 or digits[0] == "0":
        raise AddressError(f"{text[:_MAX_TEXT]!r} is no ip:port")
    return SocketAddress(canonical(ip), port)
