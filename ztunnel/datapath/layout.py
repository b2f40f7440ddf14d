# SPDX-License-Identifier: Apache-2.0
"""ctypes mirrors of the structs in bpf/zt_maps.h.

A kernel test compiles the header and compares sizes and offsets. May import the standard
library and `ztunnel.mesh`.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from ipaddress import IPv6Address, ip_address

from ztunnel.mesh.model import SocketAddress

ABI = 1  # ZT_ABI


class Role(IntEnum):
    """enum zt_role: what a socket is to us."""

    NONE = 0
    OWN = 1
    REDIRECTED = 2
    ACCEPTED = 3
    SERVED = 4


class Stat(IntEnum):
    """enum zt_stat: the index of a node-wide counter."""

    STOLEN = 0
    NO_LISTENER = 1
    NODE = 2
    FLOW_FULL = 3
    NO_NOTE = 4


class Sock(ctypes.Structure):
    """struct zt_sock"""

    _fields_ = (
        ("ip", ctypes.c_ubyte * 16),
        ("port", ctypes.c_ubyte * 2),
        ("role", ctypes.c_uint8),
        ("pad", ctypes.c_ubyte * 5),
    )


class Pod(ctypes.Structure):
    """struct zt_pod"""

    _fields_ = (
        ("ip6", ctypes.c_ubyte * 16),
        ("ip4", ctypes.c_ubyte * 4),
        ("pad", ctypes.c_uint32),
    )


class FlowKey(ctypes.Structure):
    """struct zt_flow_key"""

    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("ip", ctypes.c_ubyte * 16),
        ("sport", ctypes.c_ubyte * 2),
        ("dport", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_uint32),
    )


class Flow(ctypes.Structure):
    """struct zt_flow"""

    _fields_ = (("owner", ctypes.c_uint64), ("born_ns", ctypes.c_uint64), ("note", Sock))


class PodStats(ctypes.Structure):
    """struct zt_pod_stats"""

    _fields_ = (
        ("redirected", ctypes.c_uint64),
        ("own", ctypes.c_uint64),
        ("refused", ctypes.c_uint64),
        ("local", ctypes.c_uint64),
    )


class Meta(ctypes.Structure):
    """struct zt_meta"""

    _fields_ = (
        ("abi", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("fingerprint", ctypes.c_ubyte * 32),
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "zt_sock": Sock,
    "zt_pod": Pod,
    "zt_flow_key": FlowKey,
    "zt_flow": Flow,
    "zt_pod_stats": PodStats,
    "zt_meta": Meta,
}


def packed(ip: str) -> bytes:
    """16 bytes in network order; IPv4 becomes v4-mapped."""
    address = ip_address(ip)
    if address.version == 4:
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def unpacked(raw: bytes) -> str:
    """The canonical text of 16 bytes; a v4-mapped address comes back as IPv4."""
    address = IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def socket_address(ip: bytes, port: bytes) -> SocketAddress:
    """An address and a network-order port as the kernel keeps them."""
    return SocketAddress(unpacked(ip), int.from_bytes(port, "big"))
