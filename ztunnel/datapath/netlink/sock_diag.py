# SPDX-License-Identifier: Apache-2.0
"""End a connection from outside: inet_diag's SOCK_DESTROY, as `ss --kill` does.

The socket is named by its addresses and its cookie, so that a later one that has the same port is
never hit. The app's next call fails with ECONNABORTED, its peer gets a reset. Needs CAP_NET_ADMIN
and CONFIG_INET_DIAG_DESTROY.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import ip_address

from ztunnel.datapath import netns
from ztunnel.mesh.model import SocketAddress

LOOPBACK_IFINDEX = 1  # lo is always the first interface of a netns

_NETLINK_SOCK_DIAG = 4  # linux/netlink.h
_SOCK_DESTROY = 21  # linux/sock_diag.h
_NLM_F_REQUEST_ACK = 1 | 4
_NLMSG_ERROR = 2
_ALL_STATES = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBBxI2s2s16s16sIQ")  # struct inet_diag_req_v2 with its sockid
_ERROR = struct.Struct("=i")
_ANSWER = 4096


def destroy(
    netns_fd: int,
    source: SocketAddress,
    destination: SocketAddress,
    cookie: int,
    *,
    interface: int = 0,
) -> bool:
    """Destroy the connecting socket of a connection; False when it is gone already.

    `interface` is the index of the one the socket is bound to, if it is: LOOPBACK when it was cut
    off. Raises OSError (EOPNOTSUPP when the kernel can't).
    """
    with netns.entered(netns_fd):
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    with link:
        link.send(_message(source, destination, cookie, interface))
        answer = link.recv(_ANSWER)
    kind = _HEADER.unpack_from(answer)[1]
    result = -_ERROR.unpack_from(answer, _HEADER.size)[0] if kind == _NLMSG_ERROR else 0
    if result in (errno.ENOENT, errno.ESTALE):
        return False
    if result:
        raise OSError(result, f"destroy {source} -> {destination}: {os.strerror(result)}")
    return True


def _message(
    source: SocketAddress, destination: SocketAddress, cookie: int, interface: int
) -> bytes:
    family = socket.AF_INET6 if ":" in source.ip else socket.AF_INET
    body = _REQUEST.pack(
        family,
        socket.IPPROTO_TCP,
        0,
        _ALL_STATES,
        source.port.to_bytes(2, "big"),
        destination.port.to_bytes(2, "big"),
        ip_address(source.ip).packed,
        ip_address(destination.ip).packed,
        interface,
        cookie,
    )
    size = _HEADER.size + len(body)
    return _HEADER.pack(size, _SOCK_DESTROY, _NLM_F_REQUEST_ACK, 1, 0) + body
