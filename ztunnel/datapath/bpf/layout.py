# SPDX-License-Identifier: Apache-2.0
"""ctypes mirrors of the structs in bpf/lib/abi.h.

tests/bpf/loading/test_layout.py compiles the header and compares sizes, offsets and constants.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from ipaddress import IPv6Address, ip_address

from ztunnel.mesh.model import SocketAddress

ABI_VERSION = 6  # ZT_ABI


class Role(IntEnum):
    """enum zt_role: the role of a socket."""

    NONE = 0
    PROXY = 1
    REDIRECTED = 2
    REDIRECT_ACCEPTED = 3
    UPSTREAM_ACCEPTED = 4
    SAME_NODE = 5
    RESOLVER = 6


class SameNodeState(IntEnum):
    """enum zt_same_node_state: the state of a connection that bypasses the proxy."""

    SYN_SENT = 0
    ADMITTED = 1
    INTERCEPTED = 2
    ESTABLISHED = 3


class CloseReason(IntEnum):
    """enum zt_close_reason: why a connection that bypassed the proxy closed."""

    ORDERLY = 0
    RESET = 1
    REFUSED = 2
    UNEXPECTED_PEER = 3
    UDP_STRICT = 4


class Stat(IntEnum):
    """enum zt_stat: the index of a counter of the node."""

    INBOUND_INTERCEPTED = 0
    NO_LISTENER = 1
    NODE_LOCAL_BYPASS = 2
    FLOW_FULL = 3
    ORIGINAL_DST_MISSING = 4
    SAME_NODE_BYPASS = 5
    UNEXPECTED_PEER = 6
    EVENT_LOST = 7
    UDP_DENIED = 8
    UDP_NO_AUTHORIZER = 9
    UDP_NO_ROUTE = 10
    UDP_FORGED = 11


class UdpRoute(IntEnum):
    """enum zt_udp_route: the route of UDP to a destination."""

    NATIVE = 0
    REDIRECT = 1
    STRICT = 2
    REFUSED = 3


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

    _fields_ = (("owner", ctypes.c_uint64), ("start_ns", ctypes.c_uint64), ("sock", Sock))


class GatewayPortKey(ctypes.Structure):
    """struct zt_gateway_port_key"""

    _fields_ = (
        ("ip", ctypes.c_ubyte * 16),
        ("port", ctypes.c_ubyte * 2),
        ("protocol", ctypes.c_uint8),
        ("pad", ctypes.c_ubyte * 5),
    )


class GatewayPort(ctypes.Structure):
    """struct zt_gateway_port"""

    _fields_ = (("admitted", ctypes.c_uint64),)


class PodStats(ctypes.Structure):
    """struct zt_pod_stats"""

    _fields_ = (
        ("redirected", ctypes.c_uint64),
        ("proxy_originated", ctypes.c_uint64),
        ("refused", ctypes.c_uint64),
        ("local", ctypes.c_uint64),
        ("same_node_bypass", ctypes.c_uint64),
        ("dns", ctypes.c_uint64),
    )


class DnsPendingKey(ctypes.Structure):
    """struct zt_dns_pending_key"""

    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("port", ctypes.c_ubyte * 2),
        ("server", ctypes.c_uint8),
        ("family", ctypes.c_uint8),
        ("pad", ctypes.c_uint32),
    )


class PolicyEpoch(ctypes.Structure):
    """struct zt_policy_epoch"""

    _fields_ = (("epoch", ctypes.c_uint64), ("lease_until_ns", ctypes.c_uint64))


class SameNodeKey(ctypes.Structure):
    """struct zt_same_node_key"""

    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("ip", ctypes.c_ubyte * 16),
        ("port", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_ubyte * 6),
    )


class SameNodeAllow(ctypes.Structure):
    """struct zt_same_node_allow"""

    _fields_ = (("epoch", ctypes.c_uint64), ("dst_netns", ctypes.c_uint64))


class FourTuple(ctypes.Structure):
    """struct zt_four_tuple"""

    _fields_ = (
        ("src", ctypes.c_ubyte * 16),
        ("dst", ctypes.c_ubyte * 16),
        ("sport", ctypes.c_ubyte * 2),
        ("dport", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_uint32),
    )


class SameNodeConn(ctypes.Structure):
    """struct zt_same_node_conn"""

    _fields_ = (
        ("epoch", ctypes.c_uint64),
        ("owner", ctypes.c_uint64),
        ("netns", ctypes.c_uint64),
        ("dst_netns", ctypes.c_uint64),
        ("start_ns", ctypes.c_uint64),
        ("state", ctypes.c_uint8),
        ("server_fin", ctypes.c_uint8),
        ("pad", ctypes.c_ubyte * 6),
    )


class Event(ctypes.Structure):
    """struct zt_event"""

    _fields_ = (
        ("key", FourTuple),
        ("owner", ctypes.c_uint64),
        ("netns", ctypes.c_uint64),
        ("dst_netns", ctypes.c_uint64),
        ("duration_ns", ctypes.c_uint64),
        ("sent", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("srtt_us", ctypes.c_uint32),
        ("retransmits", ctypes.c_uint32),
        ("close_reason", ctypes.c_uint8),
        ("pad", ctypes.c_ubyte * 7),
    )


MAX_UDP_WORKERS = 32  # ZT_MAX_UDP_WORKERS


class Endpoint(ctypes.Structure):
    """struct zt_endpoint"""

    _fields_ = (
        ("ip", ctypes.c_ubyte * 16),
        ("port", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_ubyte * 6),
    )


class UdpRemoteKey(ctypes.Structure):
    """struct zt_udp_remote_key"""

    _fields_ = (("netns", ctypes.c_uint64), ("remote", Endpoint))


class UdpToken(ctypes.Structure):
    """struct zt_udp_token"""

    _fields_ = (
        ("token", ctypes.c_uint32),
        ("worker_port", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_uint16),
        ("redirected_ns", ctypes.c_uint64),
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
        ("ports", ctypes.c_ubyte * (2 * MAX_UDP_WORKERS)),
    )


class UdpStats(ctypes.Structure):
    """struct zt_udp_stats"""

    _fields_ = (
        ("redirected", ctypes.c_uint64),
        ("refused", ctypes.c_uint64),
        ("strict", ctypes.c_uint64),
        ("last_event_ns", ctypes.c_uint64),
    )


class UdpConntrackEntry(ctypes.Structure):
    """struct zt_udp_ct_entry"""

    _fields_ = (("netns", ctypes.c_uint64), ("seen_ns", ctypes.c_uint64))


class UdpDecisionKey(ctypes.Structure):
    """struct zt_udp_decision_key"""

    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("src", ctypes.c_ubyte * 16),
        ("dst", ctypes.c_ubyte * 16),
        ("port", ctypes.c_ubyte * 2),
        ("pad", ctypes.c_ubyte * 6),
    )


class UdpDecision(ctypes.Structure):
    """struct zt_udp_decision"""

    _fields_ = (
        ("epoch", ctypes.c_uint64),
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
    "zt_gateway_port_key": GatewayPortKey,
    "zt_gateway_port": GatewayPort,
    "zt_pod_stats": PodStats,
    "zt_dns_pending_key": DnsPendingKey,
    "zt_policy_epoch": PolicyEpoch,
    "zt_same_node_key": SameNodeKey,
    "zt_same_node_allow": SameNodeAllow,
    "zt_four_tuple": FourTuple,
    "zt_same_node_conn": SameNodeConn,
    "zt_event": Event,
    "zt_endpoint": Endpoint,
    "zt_udp_remote_key": UdpRemoteKey,
    "zt_udp_token": UdpToken,
    "zt_udp_token_key": UdpTokenKey,
    "zt_udp_pod": UdpPod,
    "zt_udp_stats": UdpStats,
    "zt_udp_ct_entry": UdpConntrackEntry,
    "zt_udp_decision_key": UdpDecisionKey,
    "zt_udp_decision": UdpDecision,
    "zt_meta": Meta,
}


def packed(ip: str) -> bytes:
    """An address as 16 bytes in network byte order; IPv4 becomes v4-mapped."""
    address = ip_address(ip)
    if address.version == 4:
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def unpacked(raw: bytes) -> str:
    """The canonical text of a 16-byte address; a v4-mapped address becomes IPv4."""
    address = IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def socket_address(ip: bytes, port: bytes) -> SocketAddress:
    """An address and port, from 16 bytes and a port in network byte order."""
    return SocketAddress(unpacked(ip), int.from_bytes(port, "big"))
