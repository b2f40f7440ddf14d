# SPDX-License-Identifier: Apache-2.0
"""Sockets inside a pod's network namespace.

A socket belongs to the namespace of the thread that created it, for as long as it exists. The agent
enters a pod's namespace, creates sockets and returns, without a switch of threads in between.
Entering needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ztunnel.datapath.bpf.maps import Maps
from ztunnel.ipc.gateway_messages import GatewayListenerKind
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.ports import DNS, GATEWAY_ADMIN, GATEWAY_METRICS, HBONE, INBOUND, OUTBOUND, XDS

SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)
LISTEN_BACKLOG = 4096  # connections; net.core.somaxconn caps it

LISTEN_ADDRESSES: dict[ListenerKind, tuple[socket.AddressFamily, str, int]] = {
    ListenerKind.OUTBOUND4: (socket.AF_INET, "127.0.0.1", OUTBOUND),
    ListenerKind.OUTBOUND6: (socket.AF_INET6, "::1", OUTBOUND),
    ListenerKind.INBOUND4: (socket.AF_INET, "127.0.0.1", INBOUND),
    ListenerKind.INBOUND6: (socket.AF_INET6, "::1", INBOUND),
    ListenerKind.HBONE4: (socket.AF_INET, "0.0.0.0", HBONE),  # in the pod's netns only
    ListenerKind.HBONE6: (socket.AF_INET6, "::", HBONE),
    ListenerKind.DNS4: (socket.AF_INET, "127.0.0.1", DNS),
    ListenerKind.DNS6: (socket.AF_INET6, "::1", DNS),
    ListenerKind.QUERY4: (socket.AF_INET, "127.0.0.1", DNS),
    ListenerKind.QUERY6: (socket.AF_INET6, "::1", DNS),
    ListenerKind.QUERY4_SECOND: (socket.AF_INET, "127.0.0.1", DNS + 1),
    ListenerKind.QUERY6_SECOND: (socket.AF_INET6, "::1", DNS + 1),
    ListenerKind.QUERY4_THIRD: (socket.AF_INET, "127.0.0.1", DNS + 2),
    ListenerKind.QUERY6_THIRD: (socket.AF_INET6, "::1", DNS + 2),
}

GATEWAY_ADDRESSES: dict[GatewayListenerKind, tuple[socket.AddressFamily, str, int]] = {
    GatewayListenerKind.XDS4: (socket.AF_INET, "127.0.0.1", XDS),
    GatewayListenerKind.XDS6: (socket.AF_INET6, "::1", XDS),
    GatewayListenerKind.METRICS4: (socket.AF_INET, "0.0.0.0", GATEWAY_METRICS),
    GatewayListenerKind.METRICS6: (socket.AF_INET6, "::", GATEWAY_METRICS),
}


@contextmanager
def entered(netns_fd: int) -> Iterator[None]:
    """Run the body in another network namespace. The body must not await or switch threads."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(netns_fd)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(netns_fd: int) -> None:
    """setns(2); Python has it since 3.12."""
    if _libc.setns(netns_fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"enter a network namespace: {os.strerror(number)}")


def open_pid(pid: int) -> int:
    """Open the network namespace of a process. Raises OSError."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def cookie(netns_fd: int) -> int:
    """The kernel's cookie of a namespace; unique until reboot."""
    with entered(netns_fd), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, sys.byteorder)


def open_listeners(
    netns_fd: int, maps: Maps, *, ipv6: bool = True
) -> dict[ListenerKind, socket.socket]:
    """Open the proxy's listeners in a pod, all or none.

    Raises OSError (EADDRINUSE if a process of the pod uses one of the proxy's ports).
    """
    sockets: dict[ListenerKind, socket.socket] = {}
    try:
        with entered(netns_fd):
            for kind, (family, host, port) in LISTEN_ADDRESSES.items():
                if ipv6 or family is socket.AF_INET:
                    make = _query_socket if kind.is_query else _listener
                    sockets[kind] = make(family, host, port)
        for kind, sock in sockets.items():
            if kind.is_query:
                maps.tag_resolver(sock)
    except OSError:
        for sock in sockets.values():
            sock.close()
        raise
    return sockets


def open_gateway_listeners(
    netns_fd: int, *, ipv6: bool
) -> dict[GatewayListenerKind, socket.socket]:
    """Open the listeners of the gateway process in a gateway pod, all or none.

    Raises OSError (EADDRINUSE if a process of the pod uses one of the ports).
    """
    sockets: dict[GatewayListenerKind, socket.socket] = {}
    try:
        with entered(netns_fd):
            for kind, (family, host, port) in GATEWAY_ADDRESSES.items():
                if ipv6 or family is socket.AF_INET:
                    sockets[kind] = _listener(family, host, port)
    except OSError:
        for sock in sockets.values():
            sock.close()
        raise
    return sockets


def admin_sockets(netns_fd: int, count: int) -> list[socket.socket]:
    """Open nonblocking sockets that connect to Envoy's admin port of a gateway pod. Raises OSError.

    Untagged: their holder gets no privilege of the proxy, whatever it connects them to later.
    """
    sockets: list[socket.socket] = []
    try:
        with entered(netns_fd):
            for _ in range(count):
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                sockets.append(sock)
                sock.connect_ex(("127.0.0.1", GATEWAY_ADMIN))  # its holder sees an error
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def is_gateway_listener(sock: socket.socket, kind: GatewayListenerKind, netns_cookie: int) -> bool:
    """Whether a socket is a listener of this kind in this namespace."""
    family, host, port = GATEWAY_ADDRESSES[kind]
    return _is_bound(sock, netns_cookie, (family, port), host=host)


def is_listener(sock: socket.socket, kind: ListenerKind, netns_cookie: int) -> bool:
    """Whether a socket is a listener of this kind in this namespace."""
    family, _, port = LISTEN_ADDRESSES[kind]
    return _is_bound(sock, netns_cookie, (family, port), is_query=kind.is_query)


def _is_bound(
    sock: socket.socket,
    netns_cookie: int,
    address: tuple[socket.AddressFamily, int],
    *,
    host: str = "",
    is_query: bool = False,
) -> bool:
    family, port = address
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        form = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        bound = sock.getsockname()
    except OSError:
        return False
    is_there = int.from_bytes(raw, sys.byteorder) == netns_cookie
    is_open = form == socket.SOCK_DGRAM if is_query else bool(listens)
    if not (is_there and is_open and sock.family == family):
        return False
    return bool(bound[1] == port and (not host or bound[0] == host))


def tcp_sockets(netns_fd: int, family: int, count: int, maps: Maps) -> list[socket.socket]:
    """Open unconnected nonblocking TCP sockets in a pod, tagged as the proxy's. `family` 4 or 6."""
    sockets = _proxy_sockets(netns_fd, family, socket.SOCK_STREAM, count, maps)
    for sock in sockets:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sockets


def udp_sockets(netns_fd: int, family: int, count: int, maps: Maps) -> list[socket.socket]:
    """Open unconnected nonblocking UDP sockets in a pod, tagged as the proxy's. `family` 4 or 6."""
    return _proxy_sockets(netns_fd, family, socket.SOCK_DGRAM, count, maps)


def _proxy_sockets(
    netns_fd: int, family: int, kind: int, count: int, maps: Maps
) -> list[socket.socket]:
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    sockets: list[socket.socket] = []
    try:
        with entered(netns_fd):
            for _ in range(count):
                sockets.append(socket.socket(domain, kind | socket.SOCK_NONBLOCK))
        for sock in sockets:
            maps.tag_proxy(sock)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _query_socket(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _listener(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with suppress(OSError):  # optional: accepted sockets inherit it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((host, port))
        sock.listen(LISTEN_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
