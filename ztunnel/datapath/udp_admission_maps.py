# SPDX-License-Identifier: Apache-2.0
"""Admission of native UDP to captured pods: decisions, and sockets for undecided datagrams.

A decision is valid in the policy epoch in which it was made; `begin_epoch` starts the next one.
There is no lease: policy cannot change without an agent, and netns cookies are never reused. See
bpf/lib/udp_conntrack.h.
"""

from __future__ import annotations

import ctypes
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ztunnel.datapath import netns, sockopt
from ztunnel.datapath.bpf import layout
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.datapath.bpf.syscall import RawMap
from ztunnel.datapath.sockopt import IPV6_FREEBIND
from ztunnel.mesh.model import SocketAddress

_UDP_EPOCH_INDEX = (1).to_bytes(4, sys.byteorder)  # ZT_UDP_EPOCH_INDEX
_ADDRESS_BYTES = 16
_IP_ORIGDSTADDR = 20  # linux/in.h; not in Python's socket module
_IPV6_ORIGDSTADDR = 74  # linux/in6.h
CONTROL_BUFFER_BYTES = socket.CMSG_SPACE(sockopt.SOCKADDR_IN6_SIZE)


@dataclass(frozen=True)
class UdpDecision:
    """Whether datagrams `source_ip` -> `destination` are admitted. `netns_cookie` is that of the
    source pod, 0 if the source is not a pod of this node."""

    netns_cookie: int
    source_ip: str
    destination: SocketAddress
    allowed: bool


class UdpAdmissionMaps:
    """The maps of native UDP. Raises FileNotFoundError if not pinned."""

    def __init__(self, pin_dir: Path, maps: Maps) -> None:
        def opened(name: str, key_size: int, value_size: int) -> RawMap:
            return RawMap.open(pin_dir / "maps" / name, key_size, value_size, read_only=False)

        self._maps = maps
        self._epoch = opened("zt_policy_epoch", 4, ctypes.sizeof(layout.PolicyEpoch))
        self._entries = opened(
            "zt_udp_decisions",
            ctypes.sizeof(layout.UdpDecisionKey),
            ctypes.sizeof(layout.UdpDecision),
        )
        self._conntrack = opened(
            "zt_udp_conntrack",
            ctypes.sizeof(layout.FourTuple),
            ctypes.sizeof(layout.UdpConntrackEntry),
        )
        self._authorizers = opened("zt_udp_authz_socks", _ADDRESS_BYTES, 8)

    @property
    def epoch(self) -> int:
        """The current policy epoch of UDP; 0 before the first agent started."""
        raw = self._epoch.lookup(_UDP_EPOCH_INDEX)
        return int(layout.PolicyEpoch.from_buffer_copy(raw).epoch) if raw else 0

    def begin_epoch(self, open_addresses: Iterable[str]) -> None:
        """Revoke all decisions; in the new epoch `open_addresses` admit all senders.

        Old decisions are revoked in any case. If an address cannot be stored, its datagrams are
        authorized flow by flow; the first such error is raised as OSError.
        """
        following = self.epoch + 1
        failure: OSError | None = None
        for address in open_addresses:
            try:
                self._open(address, following)
            except OSError as error:
                failure = failure or error
        self._epoch.update(_UDP_EPOCH_INDEX, bytes(layout.PolicyEpoch(epoch=following)))
        if failure is not None:
            raise failure

    def allow_all_sources(self, address: str) -> None:
        """Admit all senders to an address in the current epoch."""
        self._open(address, self.epoch)

    def set_decision(self, decision: UdpDecision) -> None:
        """Store a decision for the current epoch."""
        key = layout.UdpDecisionKey(netns=decision.netns_cookie)
        key.src[:] = layout.packed(decision.source_ip)
        key.dst[:] = layout.packed(decision.destination.ip)
        key.port[:] = decision.destination.port.to_bytes(2, "big")
        value = layout.UdpDecision(epoch=self.epoch, allowed=decision.allowed)
        self._entries.update(bytes(key), bytes(value))

    def source_pod(self, source: SocketAddress, destination: SocketAddress) -> int:
        """The cookie of the pod of this node that was seen to send such datagrams; 0 for none."""
        for port in (source.port, 0):
            raw = self._conntrack.lookup(_tuple(SocketAddress(source.ip, port), destination))
            if raw and (cookie := int(layout.UdpConntrackEntry.from_buffer_copy(raw).netns)):
                return cookie
        return 0

    def track_outgoing(
        self, netns_cookie: int, source: SocketAddress, destination: SocketAddress
    ) -> None:
        """Track a datagram that a pod sent, so that replies are admitted."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._conntrack.update(
            _tuple(source, destination),
            bytes(layout.UdpConntrackEntry(netns=netns_cookie, seen_ns=now)),
        )

    def sockets(self, netns_fd: int, *, ipv6: bool) -> dict[int, socket.socket]:
        """Open the authorizer sockets in a pod, by family (4, 6). Raises OSError."""
        sockets: dict[int, socket.socket] = {}
        try:
            for family in (4, 6) if ipv6 else (4,):
                sockets[family] = _socket(netns_fd, family)
                self._maps.tag_proxy(sockets[family])
        except OSError:
            for sock in sockets.values():
                sock.close()
            raise
        return sockets

    def set_authorizer_socket(self, address: str, sock: socket.socket) -> None:
        """Undecided datagrams to `address` go to `sock` while it is open."""
        self._authorizers.update(layout.packed(address), sock.fileno().to_bytes(8, sys.byteorder))

    def close(self) -> None:
        """Close all descriptors; the pins remain."""
        for table in (self._epoch, self._entries, self._conntrack, self._authorizers):
            table.close()

    def _open(self, address: str, epoch: int) -> None:
        key = layout.UdpDecisionKey()
        key.dst[:] = layout.packed(address)
        value = layout.UdpDecision(epoch=epoch, allowed=1)
        self._entries.update(bytes(key), bytes(value))


def _tuple(source: SocketAddress, destination: SocketAddress) -> bytes:
    key = layout.FourTuple()
    key.src[:], key.dst[:] = layout.packed(source.ip), layout.packed(destination.ip)
    key.sport[:] = source.port.to_bytes(2, "big")
    key.dport[:] = destination.port.to_bytes(2, "big")
    return bytes(key)


def _socket(netns_fd: int, family: int) -> socket.socket:
    """Bound, because a socket without a port receives no datagrams; to loopback only."""
    with netns.entered(netns_fd):
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        sock = socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if family == 4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_ORIGDSTADDR, 1)
            sock.bind(("127.0.0.1", 0))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_ORIGDSTADDR, 1)
            sock.bind(("::1", 0))
    except OSError:
        sock.close()
        raise
    return sock


def receive(
    sock: socket.socket, buffer: memoryview
) -> tuple[int, SocketAddress, SocketAddress] | None:
    """Read a datagram from an authorizer socket: its size, source and destination.

    None if the kernel did not report the destination. Raises OSError (BlockingIOError if none is
    queued).
    """
    size, control, _, source = sock.recvmsg_into([buffer], CONTROL_BUFFER_BYTES)
    for _, kind, data in control:
        if kind in (_IP_ORIGDSTADDR, _IPV6_ORIGDSTADDR):
            return size, SocketAddress(*source[:2]), sockopt.unpack_sockaddr(data)
    return None


def deliver(
    sock: socket.socket, payload: memoryview, source: SocketAddress, destination: SocketAddress
) -> None:
    """Deliver an admitted datagram to the app with its original source. Raises OSError."""
    family = 4 if sock.family == socket.AF_INET else 6
    token = socket.inet_aton(sockopt.udp_token(sock, source))
    sock.sendmsg(
        [payload],
        sockopt.token_source_control(family, token),
        0,
        (destination.ip, destination.port),
    )
