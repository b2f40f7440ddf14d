# SPDX-License-Identifier: Apache-2.0
"""Parses IP addresses and `ip:port` strings into one canonical form, and finds special ones."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address, ip_network

from ztunnel.mesh.model import SocketAddress

_MAX_TEXT = 64  # "[" + 45 characters of the longest IPv6 text + "]:65535", rounded up

# IANA's registries of special-purpose addresses, as far as no host outside the cluster has them,
# and the services of clouds for their own virtual machines, which may have credentials of the node.
# Private networks are not among them. Names that resolve to these lead into the node or the mesh.
SPECIAL_NETWORKS = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local: metadata services of clouds
        "100.100.100.200/32",  # metadata service of Alibaba Cloud
        "168.63.129.16/32",  # wire server of Azure
        "192.0.0.0/24",  # protocol assignments; metadata service of Oracle Cloud
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; contains virtual addresses of ServiceEntries
        "::/127",  # unspecified and loopback
        "::ffff:0:0/96",  # IPv4-mapped
        "fd00:ec2::254/128",  # metadata service of AWS
        "fd20:ce::254/128",  # metadata service of Google Cloud
        "64:ff9b:1::/48",  # translation to IPv4 of local use
        "2001:2::/48",  # benchmarking; virtual addresses of ServiceEntries
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local
        "ff00::/8",  # multicast
    )
)
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


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


def translated(ip: str) -> str:
    """Return the IPv4 address to which a mapped, NAT64 or 6to4 address leads; others unchanged."""
    address = ip_address(ip)
    if isinstance(address, IPv4Address):
        return ip
    if address in _NAT64:
        return str(IPv4Address(int(address) & 0xFFFFFFFF))
    return str(address.ipv4_mapped or address.sixtofour or address)


def is_special(ip: str) -> bool:
    """Return whether an address (canonical), or the IPv4 address in it, is in SPECIAL_NETWORKS."""
    address = ip_address(translated(ip))
    return any(address in each for each in SPECIAL_NETWORKS if each.version == address.version)


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
