# SPDX-License-Identifier: Apache-2.0
"""How a program without any capability talks to our BPF programs: through its own sockets.

`getsockopt(SO_ORIGINAL_DST)` is the interface every transparent proxy knows (netfilter's);
our cgroup/getsockopt program answers it. `setsockopt(ZT_LEVEL, ZT_CLIENT)` is our own: the
cgroup/setsockopt program takes it, the kernel never sees it.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from ipaddress import IPv6Address

from ztunnel.mesh.model import SocketAddress

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h, and IP6T_SO_ORIGINAL_DST in netfilter_ipv6
IP_PKTINFO = 8  # linux/in.h; Python has no name for it
IPV6_FREEBIND = 78  # linux/in6.h; needs no capability
SOL_ZTUNNEL = 0x5A54  # "ZT": a level no protocol uses; bpf/lib/abi.h says the same
ZT_SOCKOPT_CLIENT = 1
ZT_SOCKOPT_UDP_REMOTE = 2
ZT_SOCKOPT_UDP_TOKEN = 3
ZT_SOCKOPT_UDP_RESULT = 4
ZT_SOCKOPT_DNS_SERVER = 0x10000  # plus the client's port

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


@lru_cache(maxsize=4096)  # most connections go where others went
def unpack_sockaddr(raw: bytes) -> SocketAddress:
    """What a `struct sockaddr_in` or `sockaddr_in6` says; a v4-mapped address is an IPv4 one."""
    if len(raw) == _SOCKADDR_IN.size:
        _, port, ip4 = _SOCKADDR_IN.unpack(raw)
        return SocketAddress(socket.inet_ntop(socket.AF_INET, ip4), int.from_bytes(port, "big"))
    _, port, ip6 = _SOCKADDR_IN6.unpack(raw)
    ip = IPv6Address(ip6)
    return SocketAddress(str(ip.ipv4_mapped or ip), int.from_bytes(port, "big"))


def original_destination(sock: socket.socket) -> SocketAddress:
    """Where the app wanted to go, asked of a connection accepted on 15001.

    Raises OSError (ENOENT, ENOPROTOOPT) when the connection was not redirected by us.
    """
    if sock.family == socket.AF_INET:
        return unpack_sockaddr(
            sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, _SOCKADDR_IN.size)
        )
    return unpack_sockaddr(sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, SOCKADDR_IN6_SIZE))


def original_dns_server(sock: socket.socket, client_port: int) -> SocketAddress:
    """The name server that a query went to, asked right after the query was read from `sock`.

    Raises OSError (ENOPROTOOPT) when the query did not come by our redirect.
    """
    return unpack_sockaddr(
        sock.getsockopt(SOL_ZTUNNEL, ZT_SOCKOPT_DNS_SERVER + client_port, SOCKADDR_IN6_SIZE)
    )


def set_client_address(sock: socket.socket, client: SocketAddress) -> None:
    """Make accept() and getpeername() in the app report `client` for this connection.

    `sock` is an unconnected in-pod socket tagged as ours; call before connect(). Raises OSError
    (ENOPROTOOPT when our programs are not attached, EPERM when the socket is not ours).
    """
    sock.setsockopt(SOL_ZTUNNEL, ZT_SOCKOPT_CLIENT, _mapped(client))


def udp_token(sock: socket.socket, remote: SocketAddress) -> str:
    """The loopback address that stands for `remote` to the apps of a pod (bpf/lib/udp_token.h).

    `sock` is a UDP socket in the pod, tagged as ours: it carries what apps send to `remote` from
    now on. Raises OSError (EPERM) when the pod is not captured, or the socket is not ours.
    """
    sock.setsockopt(SOL_ZTUNNEL, ZT_SOCKOPT_UDP_REMOTE, _mapped(remote))
    return _udp_answer(sock).ip


def udp_remote(sock: socket.socket, token: str) -> SocketAddress:
    """Which remote address a token stands for. Raises OSError (EPERM) when it stands for none."""
    sock.setsockopt(SOL_ZTUNNEL, ZT_SOCKOPT_UDP_TOKEN, _mapped(SocketAddress(token, 0)))
    return _udp_answer(sock)


def token_source_control(family: int, token: bytes) -> Control:
    """What makes a datagram of our socket (`family` 4 or 6) come from a token (4 bytes)."""
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
