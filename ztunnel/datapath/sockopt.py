# SPDX-License-Identifier: Apache-2.0
"""The proxy's interface to the BPF programs: socket options, which need no capability.

The cgroup/getsockopt program implements `getsockopt(SO_ORIGINAL_DST)`, netfilter's interface for
transparent proxies. `setsockopt(SOL_ZTUNNEL, ...)` is specific to ztunnel: the
cgroup/setsockopt program handles it, and the kernel does not see it.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from ipaddress import IPv6Address

from ztunnel.mesh.model import SocketAddress

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h, and IP6T_SO_ORIGINAL_DST in netfilter_ipv6
IP_PKTINFO = 8  # linux/in.h; not in Python's socket module
IPV6_FREEBIND = 78  # linux/in6.h; needs no capability
SOL_ZTUNNEL = 0x5A54  # "ZT": a level that no protocol uses; ZT_SOCKOPT_* of bpf/lib/abi.h
ZT_SOCKOPT_CLIENT = 1
ZT_SOCKOPT_UDP_REMOTE = 2
ZT_SOCKOPT_UDP_TOKEN = 3
ZT_SOCKOPT_UDP_RESULT = 4
ZT_SOCKOPT_DNS_SERVER = 0x10000  # plus the client port

Control = list[tuple[int, int, bytes]]

_PKTINFO4 = struct.Struct("=i4s4s")  # struct in_pktinfo
_PKTINFO6 = struct.Struct("=16si")  # struct in6_pktinfo
_V4_MAPPED = bytes(10) + b"\xff\xff"
_INET6 = int(socket.AF_INET6)
TOKEN_NET6 = bytes.fromhex("fd5a7464 00000000")  # ZT_TOKEN_NET6
_SOCKADDR_IN = struct.Struct("=H2s4s8x")
_SOCKADDR_IN6 = struct.Struct("=H2s4x16s4x")
PKTINFO4_SIZE = _PKTINFO4.size
SOCKADDR_IN6_SIZE = _SOCKADDR_IN6.size


@lru_cache(maxsize=4096)  # most connections share their destinations
def unpack_sockaddr(raw: bytes) -> SocketAddress:
    """Decode `struct sockaddr_in` or `sockaddr_in6`; a v4-mapped address becomes IPv4."""
    if len(raw) == _SOCKADDR_IN.size:
        _, port, ip4 = _SOCKADDR_IN.unpack(raw)
        return SocketAddress(socket.inet_ntop(socket.AF_INET, ip4), int.from_bytes(port, "big"))
    _, port, ip6 = _SOCKADDR_IN6.unpack(raw)
    ip = IPv6Address(ip6)
    return SocketAddress(str(ip.ipv4_mapped or ip), int.from_bytes(port, "big"))


def original_destination(sock: socket.socket) -> SocketAddress:
    """The original destination of a connection that was accepted on port 15001.

    Raises OSError (ENOENT, ENOPROTOOPT) if the BPF programs did not redirect the connection.
    """
    if sock.family == socket.AF_INET:
        return unpack_sockaddr(
            sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, _SOCKADDR_IN.size)
        )
    return unpack_sockaddr(sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, SOCKADDR_IN6_SIZE))


def original_dns_server(sock: socket.socket, client_port: int) -> SocketAddress:
    """The name server that the app addressed with the query that was just read from `sock`.

    Raises OSError (ENOPROTOOPT) if the BPF programs did not redirect the query.
    """
    return unpack_sockaddr(
        sock.getsockopt(SOL_ZTUNNEL, ZT_SOCKOPT_DNS_SERVER + client_port, SOCKADDR_IN6_SIZE)
    )


def set_client_address(sock: socket.socket, client: SocketAddress) -> None:
    """Make accept() and getpeername() in the app report `client` for this connection.

    `sock` is an unconnected socket in the pod, tagged as the proxy's; call before connect(). Raises
    OSError (ENOPROTOOPT if the programs are not attached, EPERM if the socket is not tagged).
    """
    sock.setsockopt(SOL_ZTUNNEL, ZT_SOCKOPT_CLIENT, _mapped(client))


def udp_token(sock: socket.socket, remote: SocketAddress) -> str:
    """The token address that represents `remote` in a pod (bpf/lib/udp_token.h).

    `sock` is a UDP socket in the pod, tagged as the proxy's. From now on, it receives the datagrams
    that apps send to `remote`. Raises OSError (EPERM) if the pod is not captured or the socket is
    not tagged.
    """
    sock.setsockopt(SOL_ZTUNNEL, ZT_SOCKOPT_UDP_REMOTE, _mapped(remote))
    return _udp_answer(sock).ip


def udp_remote(sock: socket.socket, token: str) -> SocketAddress:
    """The remote address that a token represents. Raises OSError (EPERM) if there is none."""
    sock.setsockopt(SOL_ZTUNNEL, ZT_SOCKOPT_UDP_TOKEN, _mapped(SocketAddress(token, 0)))
    return _udp_answer(sock)


def token_source_control(family: int, token: bytes) -> Control:
    """Control message that sends a datagram from a token (4 bytes). `family`: 4 or 6."""
    if family == 4:
        return [(socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(0, token, bytes(4)))]
    info = _PKTINFO6.pack(TOKEN_NET6 + bytes(4) + token, 0)
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]


def _udp_answer(sock: socket.socket) -> SocketAddress:
    return unpack_sockaddr(sock.getsockopt(SOL_ZTUNNEL, ZT_SOCKOPT_UDP_RESULT, SOCKADDR_IN6_SIZE))


def _mapped(address: SocketAddress) -> bytes:
    if ":" in address.ip:
        packed = socket.inet_pton(socket.AF_INET6, address.ip)
    else:
        packed = _V4_MAPPED + socket.inet_pton(socket.AF_INET, address.ip)
    return _SOCKADDR_IN6.pack(_INET6, address.port.to_bytes(2, "big"), packed)
