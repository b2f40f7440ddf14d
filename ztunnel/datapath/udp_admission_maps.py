# SPDX-License-Identifier: Apache-2.0
"""Native UDP that comes into captured pods: who was let in, and the sockets that take the rest.

A verdict holds in its epoch, `publish` begins a new one. There is no lease: policy can't
change without an agent, and a pod's cookie is never another's. See bpf/lib/udp_conntrack.h.
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
_ADDRESS = 16
_NOBODY = bytes(_ADDRESS)
_IP_ORIGDSTADDR = 20  # linux/in.h; Python has no names for these
_IPV6_ORIGDSTADDR = 74  # linux/in6.h
CONTROL_BUFFER_BYTES = socket.CMSG_SPACE(sockopt.SOCKADDR_IN6_SIZE)


@dataclass(frozen=True)
class UdpDecision:
    """Whether datagrams `source_ip` -> `destination` are let in; `netns_cookie` is of the pod of
    this node that sends them, 0 for somebody from elsewhere."""

    netns_cookie: int
    source_ip: str
    destination: SocketAddress
    allowed: bool


class UdpAdmissionMaps:
    """The maps of native UDP. Raises FileNotFoundError when nothing is pinned."""

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
        self._talks = opened(
            "zt_udp_conntrack",
            ctypes.sizeof(layout.FourTuple),
            ctypes.sizeof(layout.UdpConntrackEntry),
        )
        self._judges = opened("zt_udp_authz_socks", _ADDRESS, 8)

    @property
    def epoch(self) -> int:
        """What valid verdicts carry; 0 before the first agent."""
        raw = self._epoch.lookup(_UDP_EPOCH_INDEX)
        return int(layout.PolicyEpoch.from_buffer_copy(raw).epoch) if raw else 0

    def begin_epoch(self, open_addresses: Iterable[str]) -> None:
        """Void every verdict; from the same moment on these addresses let everybody in."""
        following = self.epoch + 1
        for address in open_addresses:
            self._open(address, following)
        self._epoch.update(_UDP_EPOCH_INDEX, bytes(layout.PolicyEpoch(epoch=following)))

    def allow_all_sources(self, address: str) -> None:
        """Let everybody in to an address, for this epoch."""
        self._open(address, self.epoch)

    def set_decision(self, verdict: UdpDecision) -> None:
        """Let in, or keep out, for this epoch."""
        key = layout.UdpDecisionKey(netns=verdict.netns_cookie)
        key.src[:] = layout.packed(verdict.source_ip)
        key.dst[:] = layout.packed(verdict.destination.ip)
        key.port[:] = verdict.destination.port.to_bytes(2, "big")
        value = layout.UdpDecision(epoch=self.epoch, allowed=verdict.allowed)
        self._entries.update(bytes(key), bytes(value))

    def source_pod(self, source: SocketAddress, destination: SocketAddress) -> int:
        """The cookie of the pod of this node that was seen to send such datagrams; 0 for nobody."""
        for port in (source.port, 0):
            raw = self._talks.lookup(_talk(SocketAddress(source.ip, port), destination))
            if raw and (cookie := int(layout.UdpConntrackEntry.from_buffer_copy(raw).netns)):
                return cookie
        return 0

    def track_outgoing(
        self, netns_cookie: int, source: SocketAddress, destination: SocketAddress
    ) -> None:
        """A pod has sent this: what comes back is an answer."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._talks.update(
            _talk(source, destination),
            bytes(layout.UdpConntrackEntry(netns=netns_cookie, seen_ns=now)),
        )

    def sockets(self, netns_fd: int, *, ipv6: bool) -> dict[int, socket.socket]:
        """Sockets in a pod, by family, that can be its judges. Raises OSError."""
        made: dict[int, socket.socket] = {}
        try:
            for family in (4, 6) if ipv6 else (4,):
                made[family] = _socket(netns_fd, family)
                self._maps.tag_proxy(made[family])
        except OSError:
            for sock in made.values():
                sock.close()
            raise
        return made

    def set_authorizer_socket(self, address: str, sock: socket.socket) -> None:
        """What is for this address and has no verdict goes to `sock` while that is open."""
        self._judges.update(layout.packed(address), sock.fileno().to_bytes(8, sys.byteorder))

    def close(self) -> None:
        """Close every descriptor; the pins keep the maps."""
        for table in (self._epoch, self._entries, self._talks, self._judges):
            table.close()

    def _open(self, address: str, epoch: int) -> None:
        key = layout.UdpDecisionKey()
        key.dst[:] = layout.packed(address)
        value = layout.UdpDecision(epoch=epoch, allowed=1)
        self._entries.update(bytes(key), bytes(value))


def _talk(source: SocketAddress, destination: SocketAddress) -> bytes:
    key = layout.FourTuple()
    key.src[:], key.dst[:] = layout.packed(source.ip), layout.packed(destination.ip)
    key.sport[:] = source.port.to_bytes(2, "big")
    key.dport[:] = destination.port.to_bytes(2, "big")
    return bytes(key)


def _socket(netns_fd: int, family: int) -> socket.socket:
    """Bound, as a socket without a port can't be given datagrams; only to loopback."""
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
    """A datagram that a judge got: its size, from whom, to what; None when it says no destination.

    Raises OSError (BlockingIOError when there is none).
    """
    size, control, _, source = sock.recvmsg_into([buffer], CONTROL_BUFFER_BYTES)
    for _, kind, data in control:
        if kind in (_IP_ORIGDSTADDR, _IPV6_ORIGDSTADDR):
            return size, SocketAddress(*source[:2]), sockopt.unpack_sockaddr(data)
    return None


def deliver(
    sock: socket.socket, payload: memoryview, source: SocketAddress, destination: SocketAddress
) -> None:
    """Bring the app a datagram that was let in, as from its source. Raises OSError."""
    family = 4 if sock.family == socket.AF_INET else 6
    token = socket.inet_aton(sockopt.udp_token(sock, source))
    sock.sendmsg(
        [payload],
        sockopt.token_source_control(family, token),
        0,
        (destination.ip, destination.port),
    )
