# SPDX-License-Identifier: Apache-2.0
"""Requests, and the values that terms of rules match them by.

An index key describes how to extract a value from a request (the first 20 characters of the
principal, the first 8 bits of the source address). All values of a key are in one hash table, so a
lookup among ten thousand values is one operation.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import msgspec

from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.model import ADDRESSES, Attribute

IndexValue = str | int | bool
_BITS = {4: 32, 6: 128}


class AuthzRequest(msgspec.Struct, frozen=True, gc=False):
    """The input of an authorization. `identity` is the peer's SPIFFE ID, empty without mTLS.

    `udp`: datagrams, not a connection.
    """

    source_ip: str
    identity: str
    destination: SocketAddress
    udp: bool = False


class RequestAttributes:
    """The attributes of a request that rules match, parsed once."""

    __slots__ = ("addresses", "port", "texts")

    def __init__(self, request: AuthzRequest) -> None:
        principal = request.identity.removeprefix("spiffe://")
        _, _, rest = principal.partition("/ns/")
        namespace, _, account = rest.partition("/sa/")
        self.texts = {
            Attribute.PRINCIPAL: principal,
            Attribute.NAMESPACE: namespace,
            Attribute.ACCOUNT: f"{namespace}/{account}" if account else "",
        }
        self.addresses = {
            Attribute.SOURCE_IP: _parse_ip(request.source_ip),
            Attribute.DESTINATION_IP: _parse_ip(request.destination.ip),
        }
        self.port = request.destination.port

    def value(self, attribute: Attribute) -> str | int | tuple[int, int]:
        """Return the value that all keys of an attribute extract from."""
        if attribute is Attribute.DESTINATION_PORT:
            return self.port
        if attribute in ADDRESSES:
            return self.addresses[attribute]
        return self.texts[attribute]


class MatchKind(IntEnum):
    """How a key extracts its value, ordered by selectivity, most selective first."""

    EXACT = 0
    NET4 = 1
    NET6 = 2
    PREFIX = 3
    SUFFIX = 4
    PORT = 5
    PRESENT = 6


class IndexKey(NamedTuple):
    """`length` in characters of a prefix or suffix, in bits of a network."""

    attribute: Attribute
    kind: MatchKind
    length: int = 0

    def extract(self, attributes: RequestAttributes) -> IndexValue | None:
        """Return the value of a request for this key; None if it has none."""
        attribute, kind, length = self
        if kind is MatchKind.PORT:
            return attributes.port
        if kind is MatchKind.NET4 or kind is MatchKind.NET6:
            family, number = attributes.addresses[attribute]
            bits = 32 if kind is MatchKind.NET4 else 128
            return number >> (bits - length) if _BITS.get(family) == bits else None
        text = attributes.texts[attribute]
        if not text or length > len(text):
            return None
        if kind is MatchKind.EXACT:
            return text
        if kind is MatchKind.PRESENT:
            return True
        return text[:length] if kind is MatchKind.PREFIX else text[-length:]


def index_entry(attribute: Attribute, value: str) -> tuple[IndexKey, IndexValue]:
    """Return the index entry of a term value. Raises ValueError for an invalid CIDR or port."""
    if attribute is Attribute.DESTINATION_PORT:
        return IndexKey(attribute, MatchKind.PORT), int(value)
    if attribute in ADDRESSES:
        network = ip_network(value)
        kind, bits = (MatchKind.NET4, 32) if network.version == 4 else (MatchKind.NET6, 128)
        prefix = int(network.network_address) >> (bits - network.prefixlen)
        return IndexKey(attribute, kind, network.prefixlen), prefix
    if value == "*":
        return IndexKey(attribute, MatchKind.PRESENT), True
    if value.endswith("*"):
        return IndexKey(attribute, MatchKind.PREFIX, len(value) - 1), value[:-1]
    if value.startswith("*"):
        return IndexKey(attribute, MatchKind.SUFFIX, len(value) - 1), value[1:]
    return IndexKey(attribute, MatchKind.EXACT), value


@lru_cache(maxsize=4096)
def _parse_ip(ip: str) -> tuple[int, int]:
    """Return family and integer of a canonical address; family 0 if it is not an address."""
    try:
        address = ip_address(ip)
    except ValueError:
        return 0, 0
    return address.version, int(address)
