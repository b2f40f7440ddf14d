# SPDX-License-Identifier: Apache-2.0
"""Operations on sockets: dial, reset, disconnect. No state."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from ipaddress import ip_address

from ztunnel.mesh.model import SocketAddress

CONNECT_TIMEOUT_S = 10.0  # istio ztunnel's connection timeout

_LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger: close() sends RST
_LINGER_DEFAULT = struct.pack("ii", 0, 0)  # close() delivers what was written, then FIN
_AF_UNSPEC_ADDRESS = bytes(16)  # a sockaddr whose family is AF_UNSPEC (0)
_TCP_CLOSE = 7  # include/net/tcp_states.h
_MAX_STALE_DATAGRAMS = 64  # a socket with more unread datagrams is not reused
_libc = ctypes.CDLL(None, use_errno=True)


def adopt(fd: int, family: int, *, udp: bool = False) -> socket.socket:
    """A non-blocking TCP or UDP socket object that owns `fd`; `family` is 4 or 6."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    form, protocol = (
        (socket.SOCK_DGRAM, socket.IPPROTO_UDP) if udp else (socket.SOCK_STREAM, socket.IPPROTO_TCP)
    )
    sock = socket.socket(kind, form, protocol, fileno=fd)
    sock.setblocking(False)
    return sock


def start_connect(sock: socket.socket, address: SocketAddress) -> bool:
    """Dial without blocking; True when it is connected already. Raises OSError when refused.

    A connection inside one kernel is established by the first call, which still returns
    EINPROGRESS: a second call saves a turn of the loop.
    """
    target = (address.ip, address.port)
    error = sock.connect_ex(target)
    if error == errno.EINPROGRESS:
        error = sock.connect_ex(target)
    if error in (0, errno.EISCONN):
        return True
    if error in (errno.EALREADY, errno.EINPROGRESS):
        return False
    raise OSError(error, os.strerror(error))


def fin_on_close(sock: socket.socket) -> None:
    """Make close() deliver unsent bytes and send FIN: undoes `reset_on_close`."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_DEFAULT)


def reset_on_close(sock: socket.socket) -> None:
    """Make close() send RST, so that the peer does not mistake it for an orderly end.

    Sockets of applications have this from the start: if the worker dies, the kernel resets them.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    except OSError:  # the peer has reset it already
        return


def no_delay(sock: socket.socket) -> None:
    """Send small writes at once. Sockets accepted from a listener inherit it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def disconnect(sock: socket.socket) -> bool:
    """Reset a closed TCP socket, including its port, so that it can connect again.

    Works only in state CLOSE: disconnecting a socket with bytes in flight would lose them. False in
    any other state, or on error.
    """
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return False
    if state != _TCP_CLOSE:
        return False
    size = len(_AF_UNSPEC_ADDRESS)
    return bool(_libc.connect(sock.fileno(), _AF_UNSPEC_ADDRESS, size) == 0)


def disconnect_datagram(sock: socket.socket) -> bool:
    """Reset a UDP socket: no peer, no port, nothing to read. False on error."""
    if _libc.connect(sock.fileno(), _AF_UNSPEC_ADDRESS, len(_AF_UNSPEC_ADDRESS)) != 0:
        return False
    for _ in range(_MAX_STALE_DATAGRAMS):
        try:
            sock.recv(1)
        except BlockingIOError:
            return True
        except OSError:  # a late ICMP error
            continue
    return False


def peer_address(sock: socket.socket) -> SocketAddress:
    """The peer's address in canonical text."""
    name = sock.getpeername()
    return canonical(name[0], name[1])


def local_address(sock: socket.socket) -> SocketAddress:
    """The local address in canonical text."""
    name = sock.getsockname()
    return canonical(name[0], name[1])


def canonical(ip: str, port: int) -> SocketAddress:
    """A socket address as the mesh model writes it: never v4-mapped."""
    if ip.startswith("::ffff:"):
        mapped = getattr(ip_address(ip), "ipv4_mapped", None)
        ip = str(mapped) if mapped else ip
    return SocketAddress(ip, port)
