# SPDX-License-Identifier: Apache-2.0
"""The lab's address plan: which addresses nodes, pods and services get. Pure arithmetic.

underlay   172.30.0.N/24     fd00:30::N/64           node N
pods       10.244.N.0/24     fd00:10:244:N::/64      routed to node N
services   10.96.0.0/16      fd00:10:96::/112        virtual: resolved by kube-proxy or the mesh
DNS        10.96.0.10        fd00:10:96::a           on the loopback of every node
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address

MAX_NODES = 200
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
DNS_ADDRESSES = ("10.96.0.10", "fd00:10:96::a")
UNDERLAY_PREFIX_LENGTHS = (24, 64)
POD_GATEWAYS = ("169.254.1.1", "fe80::1")  # link-local: the same in every pod, owned by no subnet

_SERVICE_BASES = (int(IPv4Address("10.96.0.0")), int(IPv6Address("fd00:10:96::")))
_FIRST_SERVICE = 256  # the first block is kept for fixed addresses such as DNS
_LAST_SERVICE = 65534
_FIRST_POD, _LAST_POD = 2, 254

Pair = tuple[str, str]  # one IPv4 and one IPv6 text


def node_addresses(index: int) -> Pair:
    """The underlay addresses of node `index` (from 1)."""
    return f"172.30.0.{index}", str(IPv6Address(f"fd00:30::{index:x}"))


def pod_cidrs(index: int) -> Pair:
    """The pod ranges routed to node `index`."""
    return f"10.244.{index}.0/24", f"fd00:10:244:{index:x}::/64"


def pod_addresses(index: int, taken: Collection[str]) -> Pair:
    """The lowest pair on node `index` of which neither address is taken.

    Raises ValueError when the node has no address left.
    """
    for host in range(_FIRST_POD, _LAST_POD + 1):
        pair = f"10.244.{index}.{host}", str(IPv6Address(f"fd00:10:244:{index:x}::{host:x}"))
        if not taken or not set(pair) & set(taken):
            return pair
    raise ValueError(f"node {index} has no pod address left of {_LAST_POD - _FIRST_POD + 1}")


def service_addresses(key: str, taken: Collection[str]) -> Pair:
    """A stable pair for the service `namespace/name`: by hash, next free on a collision."""
    span = _LAST_SERVICE - _FIRST_SERVICE + 1
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    for step in range(span):
        offset = _FIRST_SERVICE + (start + step) % span
        pair = (
            str(IPv4Address(_SERVICE_BASES[0] + offset)),
            str(IPv6Address(_SERVICE_BASES[1] + offset)),
        )
        if not set(pair) & set(taken):
            return pair
    raise ValueError(f"no service address left of {span}")


def is_ipv6(address: str) -> bool:
    """Whether the text is an IPv6 address."""
    return ":" in address
