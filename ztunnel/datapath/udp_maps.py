# SPDX-License-Identifier: Apache-2.0
"""Redirected UDP: the routes, and the workers' sockets in pods."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ztunnel.datapath import netns
from ztunnel.datapath.bpf import layout
from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.datapath.bpf.syscall import RawMap
from ztunnel.datapath.sockopt import IP_PKTINFO, IPV6_FREEBIND
from ztunnel.datapath.udp_admission_maps import UdpAdmissionMaps
from ztunnel.mesh.model import SocketAddress

DEFAULT_DESTINATION = SocketAddress("::", 0)  # destinations without a route of their own
MAX_WORKERS = layout.MAX_UDP_WORKERS
RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024  # datagrams of one pod that wait for a worker

MAX_PORT_ATTEMPTS = 8  # a port that is free in IPv4 may be in use in IPv6
_COOKIE_BYTES = 8
_SO_LOCK_FILTER = 44  # asm-generic/socket.h; not in Python's socket module
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_NET_OFF = 0xFFF00000  # SKF_NET_OFF: loads are relative to the IP header
# Accept only datagrams to a token (127.64.0.0/10), which no other host can send.
_TOKENS_ONLY = (
    (0x20, 0, 0, _NET_OFF + 16),  # ld destination address
    (0x54, 0, 0, 0xFFC00000),  # and the mask of a /10
    (0x15, 0, 1, 0x7F400000),  # equal?
    (0x06, 0, 0, 0xFFFFFFFF),  # accept all bytes
    (0x06, 0, 0, 0),  # else drop
)
_DROP_ALL = ((0x06, 0, 0, 0),)
_UDP_HEADER = struct.Struct("!HHHH")  # ports, length, checksum: none is legal in IPv4 (RFC 768)


@dataclass(frozen=True)
class UdpCounters:
    """Datagrams and connects of one pod to destinations with a route."""

    redirected: int
    refused: int
    strict: int = 0


class UdpMaps:
    """The maps of redirected UDP. Raises FileNotFoundError if not pinned."""

    def __init__(self, pin_dir: Path, *, read_only: bool = False) -> None:
        def opened(name: str, key_size: int, value_size: int) -> RawMap:
            path = pin_dir / "maps" / name
            return RawMap.open(path, key_size, value_size, read_only=read_only)

        self._routes = opened("zt_udp_routes", ctypes.sizeof(layout.Endpoint), 1)
        self._pods = opened("zt_udp_pods", _COOKIE_BYTES, ctypes.sizeof(layout.UdpPod))
        self._stats = opened("zt_udp_stats", _COOKIE_BYTES, ctypes.sizeof(layout.UdpStats))

    def set_route(self, to: SocketAddress, route: UdpRoute) -> None:
        """Route UDP to an address. Port 0: all ports without a route of their own.

        Connected sockets are not affected. Raises OSError (E2BIG if the map is full).
        """
        self._routes.update(_destination(to), bytes([route]))

    def set_default_route(self, route: UdpRoute) -> None:
        """Route UDP to destinations without a route: NATIVE, or REFUSED while routes are missing.

        The first call reserves the entry, so that later calls succeed in a full map.
        """
        self._routes.update(_destination(DEFAULT_DESTINATION), bytes([route]))

    def default_route(self) -> UdpRoute | None:
        """The default route; None before the first `set_default_route`."""
        raw = self._routes.lookup(_destination(DEFAULT_DESTINATION))
        return UdpRoute(raw[0]) if raw else None

    def remove_route(self, to: SocketAddress) -> None:
        """Undo `set_route`."""
        self._routes.delete(_destination(to))

    def routes(self) -> dict[SocketAddress, UdpRoute]:
        """The routes by destination, without the default route."""
        found = {}
        for key, value in self._routes.items():
            parsed_key = layout.Endpoint.from_buffer_copy(key)
            destination = layout.socket_address(bytes(parsed_key.ip), bytes(parsed_key.port))
            if destination != DEFAULT_DESTINATION:
                found[destination] = UdpRoute(value[0])
        return found

    def set_worker_ports(self, netns_cookie: int, ports: Sequence[int]) -> None:
        """Set the ports of the workers' sockets in a pod. Without any, its UDP is refused.

        Raises OSError.
        """
        key = netns_cookie.to_bytes(_COOKIE_BYTES, sys.byteorder)
        ports = ports[:MAX_WORKERS]
        value = layout.UdpPod(workers=len(ports))
        packed = b"".join(port.to_bytes(2, "big") for port in ports)
        value.ports[:] = packed.ljust(ctypes.sizeof(value.ports), b"\0")
        self._pods.update(key, bytes(value))
        if self._stats.lookup(key) is None:
            self._stats.update(key, bytes(layout.UdpStats()))

    def worker_ports(self, netns_cookie: int) -> list[int]:
        """The ports of the workers' sockets in a pod."""
        raw = self._pods.lookup(netns_cookie.to_bytes(_COOKIE_BYTES, sys.byteorder))
        if raw is None:
            return []
        value = layout.UdpPod.from_buffer_copy(raw)
        packed = bytes(value.ports)
        return [int.from_bytes(packed[2 * n : 2 * n + 2], "big") for n in range(value.workers)]

    def pods(self) -> set[int]:
        """The netns cookies of the pods with worker ports."""
        return {int.from_bytes(key, sys.byteorder) for key in self._pods.keys()}  # noqa: SIM118

    def remove(self, netns_cookie: int) -> None:
        """Delete the ports and counters of a pod."""
        key = netns_cookie.to_bytes(_COOKIE_BYTES, sys.byteorder)
        self._pods.delete(key)
        self._stats.delete(key)

    def counters(self) -> dict[int, UdpCounters]:
        """Counters by netns cookie."""
        found = {}
        for key, value in self._stats.items():
            raw = layout.UdpStats.from_buffer_copy(value)
            found[int.from_bytes(key, sys.byteorder)] = UdpCounters(
                raw.redirected, raw.refused, raw.strict
            )
        return found

    def close(self) -> None:
        """Close all descriptors; the pins remain."""
        for table in (self._routes, self._pods, self._stats):
            table.close()


class UdpKernelApi(UdpMaps):
    """The maps, and sockets in pods: what the agent uses."""

    def __init__(self, pin_dir: Path, maps: Maps, entry: UdpAdmissionMaps) -> None:
        super().__init__(pin_dir)
        self._maps = maps
        self._entry = entry

    def sockets(self, netns_fd: int, *, ipv6: bool) -> list[socket.socket]:
        """`udp_sockets` with the maps of this object."""
        return udp_sockets(netns_fd, self._maps, ipv6=ipv6)

    def send(
        self,
        netns_fd: int,
        source: SocketAddress,
        destination: SocketAddress,
        payloads: Iterable[bytes],
    ) -> None:
        """Send native datagrams from the app's own address `source`, and admit replies.

        Uses a raw socket in the pod, because the app's socket occupies the port. Raises OSError.
        """
        self._entry.track_outgoing(netns.cookie(netns_fd), source, destination)
        send_raw(netns_fd, source, destination, payloads)


def send_raw(
    netns_fd: int, source: SocketAddress, destination: SocketAddress, payloads: Iterable[bytes]
) -> None:
    """Send UDP datagrams; the kernel adds the IP header and fragments. Raises OSError."""
    is_v6 = ":" in source.ip
    with netns.entered(netns_fd):
        family = socket.AF_INET6 if is_v6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
    with sock:
        _attach(sock, _DROP_ALL)
        if is_v6:  # RFC 3542 3.1: offset of the checksum, which IPv6 requires
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, 6)
        sock.bind((source.ip, 0))
        for payload in payloads:
            header = _UDP_HEADER.pack(source.port, destination.port, 8 + len(payload), 0)
            sock.sendto(header + payload, (destination.ip, 0))


def udp_sockets(netns_fd: int, maps: Maps, *, ipv6: bool) -> list[socket.socket]:
    """Open a worker's UDP sockets in a pod, IPv4 first, on one free port; tagged as the proxy's.

    The IPv4 socket accepts only datagrams to a token, and reports it with IP_PKTINFO. The IPv6
    socket is bound to loopback, may send from any address, and reads tokens as sources. Raises
    OSError.
    """
    for attempt in range(MAX_PORT_ATTEMPTS):
        sockets = [_socket4(netns_fd)]
        try:
            if ipv6:
                sockets.append(_socket6(netns_fd, sockets[0].getsockname()[1]))
            for sock in sockets:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
                maps.tag_proxy(sock)
        except OSError as error:
            for sock in sockets:
                sock.close()
            if error.errno != errno.EADDRINUSE or attempt == MAX_PORT_ATTEMPTS - 1:
                raise
            continue
        break
    return sockets


def _destination(to: SocketAddress) -> bytes:
    key = layout.Endpoint()
    key.ip[:] = layout.packed(to.ip)
    key.port[:] = to.port.to_bytes(2, "big")
    return bytes(key)


def _socket4(netns_fd: int) -> socket.socket:
    with netns.entered(netns_fd):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        _attach(sock, _TOKENS_ONLY)
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.bind(("0.0.0.0", 0))  # in the pod's netns only; the filter accepts only tokens
    except OSError:
        sock.close()
        raise
    return sock


def _socket6(netns_fd: int, port: int) -> socket.socket:
    with netns.entered(netns_fd):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        sock.bind(("::1", port))
    except OSError:
        sock.close()
        raise
    return sock


def _attach(sock: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*one) for one in program))
    program_struct = struct.pack("@HP", len(program), ctypes.addressof(code))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program_struct)
    sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
