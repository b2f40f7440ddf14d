# SPDX-License-Identifier: Apache-2.0
"""ctypes mirrors of the structs in bpf/zt_maps.h.

A kernel test compiles the header and compares sizes and offsets.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from ipaddress import IPv6Address, ip_address

from ztunnel.mesh.model import SocketAddress

ABI = 4  # ZT_ABI


class Role(IntEnum):
    """enum zt_role: what a socket is to us."""

    NONE = 0
    OWN = 1
    REDIRECTED = 2
    ACCEPTED = 3
    SERVED = 4
    DIRECT = 5
    RESOLVER = 6


class DirectState(IntEnum):
    """enum zt_direct_state: how far a connection by verdict has got."""

    SENT = 0
    PASSED = 1
    STOLEN = 2
    ACCEPTED = 3


class Ending(IntEnum):
    """enum zt_ending: how a connection by verdict ended."""

    ORDERLY = 0
    RESET = 1
    REFUSED = 2
    FOREIGN = 3
    STRICT = 4


class Stat(IntEnum):
    """enum zt_stat: the index of a node-wide counter."""

    STOLEN = 0
    NO_LISTENER = 1
    NODE = 2
    FLOW_FULL = 3
    NO_NOTE = 4
    DIRECT = 5
    FOREIGN = 6
    EVENT_LOST = 7
    UDP_DENIED = 8
    UDP_UNJUDGED = 9


class UdpDst(IntEnum):
    """enum zt_udp_dst: what becomes of UDP to an address."""

    PLAIN = 0
    CARRY = 1
    STRICT = 2


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
        ("direct", ctypes.c_uint64),
        ("dns", ctypes.c_uint64),
    )


class QueryKey(ctypes.Structure):
    """struct zt_query_key"""

    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("port", ctypes.c_ubyte * 2),
        ("server", ctypes.c_uint8),
        ("family", ctypes.c_uint8),
        ("pad", ctypes.c_uint32),
    )


class Lease(ctypes.Structure):
    """struct zt_lease"""

    _fields_ = (("generation", ctypes.c_uint64), ("until_ns", ctypes.c_uint64))


class VerdictKey(ctypes.Structure):
    """struct zt_verdict_key"""

    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("ip", ctypes.c_ubyte * 16),
        ("port", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_ubyte * 6),
    )


class Verdict(ctypes.Structure):
    """struct zt_verdict"""

    _fields_ = (("generation", ctypes.c_uint64), ("dst_netns", ctypes.c_uint64))


class DirectKey(ctypes.Structure):
    """struct zt_direct_key"""

    _fields_ = (
        ("src", ctypes.c_ubyte * 16),
        ("dst", ctypes.c_ubyte * 16),
        ("sport", ctypes.c_ubyte * 2),
        ("dport", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_uint32),
    )


class Direct(ctypes.Structure):
    """struct zt_direct"""

    _fields_ = (
        ("generation", ctypes.c_uint64),
        ("owner", ctypes.c_uint64),
        ("netns", ctypes.c_uint64),
        ("dst_netns", ctypes.c_uint64),
        ("born_ns", ctypes.c_uint64),
        ("state", ctypes.c_uint8),
        ("server_fin", ctypes.c_uint8),
        ("pad", ctypes.c_ubyte * 6),
    )


class Event(ctypes.Structure):
    """struct zt_event"""

    _fields_ = (
        ("key", DirectKey),
        ("owner", ctypes.c_uint64),
        ("netns", ctypes.c_uint64),
        ("dst_netns", ctypes.c_uint64),
        ("duration_ns", ctypes.c_uint64),
        ("sent", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("srtt_us", ctypes.c_uint32),
        ("retransmits", ctypes.c_uint32),
        ("ending", ctypes.c_uint8),
        ("pad", ctypes.c_ubyte * 7),
    )


UDP_PORTS = 32  # ZT_MAX_UDP_PORTS


class UdpRemote(ctypes.Structure):
    """struct zt_udp_remote"""

    _fields_ = (
        ("ip", ctypes.c_ubyte * 16),
        ("port", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_ubyte * 6),
    )


class UdpRemoteKey(ctypes.Structure):
    """struct zt_udp_remote_key"""

    _fields_ = (("netns", ctypes.c_uint64), ("remote", UdpRemote))


class UdpPeer(ctypes.Structure):
    """struct zt_udp_peer"""

    _fields_ = (
        ("token", ctypes.c_uint32),
        ("via", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_uint16),
        ("carried_ns", ctypes.c_uint64),
    )


class UdpTokenKey(ctypes.Structure):
    """struct zt_udp_token_key"""

    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("token", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class UdpPod(ctypes.Structure):
    """struct zt_udp_pod"""

    _fields_ = (
        ("workers", ctypes.c_uint32),
        ("ports", ctypes.c_ubyte * (2 * UDP_PORTS)),
    )


class UdpStats(ctypes.Structure):
    """struct zt_udp_stats"""

    _fields_ = (
        ("redirected", ctypes.c_uint64),
        ("refused", ctypes.c_uint64),
        ("strict", ctypes.c_uint64),
        ("told_ns", ctypes.c_uint64),
    )


class UdpTalk(ctypes.Structure):
    """struct zt_udp_talk"""

    _fields_ = (("netns", ctypes.c_uint64), ("seen_ns", ctypes.c_uint64))


class UdpVerdictKey(ctypes.Structure):
    """struct zt_udp_verdict_key"""

    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("src", ctypes.c_ubyte * 16),
        ("dst", ctypes.c_ubyte * 16),
        ("port", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_ubyte * 6),
    )


class UdpVerdict(ctypes.Structure):
    """struct zt_udp_verdict"""

    _fields_ = (
        ("generation", ctypes.c_uint64),
        ("datagrams", ctypes.c_uint64),
        ("allowed", ctypes.c_uint8),
        ("pad", ctypes.c_ubyte * 7),
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
    "zt_query_key": QueryKey,
    "zt_lease": Lease,
    "zt_verdict_key": VerdictKey,
    "zt_verdict": Verdict,
    "zt_direct_key": DirectKey,
    "zt_direct": Direct,
    "zt_event": Event,
    "zt_udp_remote": UdpRemote,
    "zt_udp_remote_key": UdpRemoteKey,
    "zt_udp_peer": UdpPeer,
    "zt_udp_token_key": UdpTokenKey,
    "zt_udp_pod": UdpPod,
    "zt_udp_stats": UdpStats,
    "zt_udp_talk": UdpTalk,
    "zt_udp_verdict_key": UdpVerdictKey,
    "zt_udp_verdict": UdpVerdict,
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
