# SPDX-License-Identifier: Apache-2.0
"""What the proxy does to TCP sockets: dial, reset, recycle. No state of its own."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from ipaddress import ip_address

from ztunnel.mesh.model import SocketAddress

CONNECT_TIMEOUT_S = 10.0  # seconds; istio ztunnel's connection timeout

_LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger: close() sends RST
_LINGER_DEFAULT = struct.pack("ii", 0, 0)  # close() delivers what was written, then FIN
_AF_UNSPEC_ADDRESS = bytes(16)  # a sockaddr whose family is AF_UNSPEC (0)
_TCP_CLOSE = 7  # include/net/tcp_states.h
_MAX_STALE_DATAGRAMS = 64  # datagrams in a queue that are worth reading away
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

    A connection inside one kernel is made within the first call, which still answers
    EINPROGRESS: asking a second time saves a round through the loop.
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
    """Make the coming close() an orderly one that loses nothing: undoes `reset_on_close`."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_DEFAULT)


def reset_on_close(sock: socket.socket) -> None:
    """Make close() send RST: the peer must not take it for an orderly end.

    Application sockets have this from the start, so that a worker that dies resets them.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    except OSError:  # the peer was faster: there is nothing left to reset
        return


def no_delay(sock: socket.socket) -> None:
    """Send small writes at once. Sockets accepted from a listener inherit it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def disconnect(sock: socket.socket) -> bool:
    """Make an ended TCP socket connectable again, port and all state forgotten.

    Only if the kernel is done with the connection: to disconnect one that still has bytes
    in flight would lose them. False when it is not, or on any error.
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
    """Make a UDP socket as good as new: no peer, no port, nothing left to read. False on error."""
    if _libc.connect(sock.fileno(), _AF_UNSPEC_ADDRESS, len(_AF_UNSPEC_ADDRESS)) != 0:
        return False
    for _ in range(_MAX_STALE_DATAGRAMS):
        try:
            sock.recv(1)
        except BlockingIOError:
            return True
        except OSError:  # an ICMP error that came late
            continue
    return False


def peer_address(sock: socket.socket) -> SocketAddress:
    """The peer's address in canonical text."""
    name = sock.getpeername()
    return canonical(name[0], name[1])


def local_address(sock: socket.socket) -> SocketAddress:
    """Our end's address in canonical text."""
    name = sock.getsockname()
    return canonical(name[0], name[1])


def canonical(ip: str, port: int) -> SocketAddress:
    """A socket address as the mesh model writes it: never v4-mapped."""
    if ip.startswith("::ffff:"):
        mapped = getattr(ip_address(ip), "ipv4_mapped", None)
        ip = str(mapped) if mapped else ip
    return SocketAddress(ip, port)
