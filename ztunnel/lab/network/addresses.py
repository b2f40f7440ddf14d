# SPDX-License-Identifier: Apache-2.0
"""The address plan: the addresses of nodes, pods and services. Pure.

underlay   172.30.0.N/24     fd00:30::N/64           node N
pods       10.244.N.0/24     fd00:10:244:N::/64      routed to node N
external   172.30.0.250/24   fd00:30::fa/64          a machine outside the cluster
balancers  172.30.1.0/24     fd00:30:1::/112         services of type LoadBalancer
services   10.96.0.0/16      fd00:10:96::/112        virtual: translated by kube-proxy or the mesh
DNS        10.96.0.10        fd00:10:96::a           on the loopback of every node
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

MAX_NODES = 200
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
EXTERNAL_ADDRESSES = ("172.30.0.250", "fd00:30::fa")
BALANCER_CIDRS = ("172.30.1.0/24", "fd00:30:1::/112")
DNS_ADDRESSES = ("10.96.0.10", "fd00:10:96::a")
UNDERLAY_PREFIX_LENGTHS = (24, 64)
POD_GATEWAYS = ("169.254.1.1", "fe80::1")  # link-local, the same in all pods

_SERVICE_BASES = (int(IPv4Address("10.96.0.0")), int(IPv6Address("fd00:10:96::")))
_FIRST_SERVICE = 256  # the first block is reserved for fixed addresses such as DNS
_LAST_SERVICE = 65534
_FIRST_POD, _LAST_POD = 2, 254
_BALANCER_BASES = (int(IPv4Address("172.30.1.0")), int(IPv6Address("fd00:30:1::")))
_LAST_BALANCER = 254

AddressPair = tuple[str, str]  # IPv4 and IPv6


@dataclass(frozen=True)
class Node:
    """A node of the lab. All its addresses follow from its index, which starts at 1."""

    name: str
    index: int


def make_nodes(count: int) -> list[Node]:
    """`node1` … `nodeN`."""
    return [Node(f"node{index}", index) for index in range(1, count + 1)]


def node_addresses(index: int) -> AddressPair:
    """The underlay addresses of node `index` (from 1)."""
    return f"172.30.0.{index}", str(IPv6Address(f"fd00:30::{index:x}"))


def pod_cidrs(index: int) -> AddressPair:
    """The pod ranges routed to node `index`."""
    return f"10.244.{index}.0/24", f"fd00:10:244:{index:x}::/64"


def pod_addresses(index: int, used: Collection[str]) -> AddressPair:
    """The lowest free pair on node `index`. Raises ValueError if the node has no free address."""
    for host in range(_FIRST_POD, _LAST_POD + 1):
        pair = f"10.244.{index}.{host}", str(IPv6Address(f"fd00:10:244:{index:x}::{host:x}"))
        if not used or not set(pair) & set(used):
            return pair
    raise ValueError(
        f"node {index} has no free pod address: all {_LAST_POD - _FIRST_POD + 1} are in use"
    )


def service_addresses(key: str, used: Collection[str]) -> AddressPair:
    """A stable pair for the service `namespace/name`: by hash, then the next free one.

    Raises ValueError if no address is free.
    """
    span = _LAST_SERVICE - _FIRST_SERVICE + 1
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    for step in range(span):
        offset = _FIRST_SERVICE + (start + step) % span
        pair = (
            str(IPv4Address(_SERVICE_BASES[0] + offset)),
            str(IPv6Address(_SERVICE_BASES[1] + offset)),
        )
        if not set(pair) & set(used):
            return pair
    raise ValueError(f"no free service address: all {span} are in use")


def balancer_addresses(key: str, used: Collection[str]) -> AddressPair:
    """A stable pair for the LoadBalancer service `namespace/name`.

    Raises ValueError if no address is free.
    """
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    for step in range(_LAST_BALANCER):
        offset = 1 + (start + step) % _LAST_BALANCER
        pair = (
            str(IPv4Address(_BALANCER_BASES[0] + offset)),
            str(IPv6Address(_BALANCER_BASES[1] + offset)),
        )
        if not set(pair) & set(used):
            return pair
    raise ValueError(f"no free load balancer address: all {_LAST_BALANCER} are in use")


def is_ipv6(address: str) -> bool:
    """Whether an address is IPv6."""
    return ":" in address
