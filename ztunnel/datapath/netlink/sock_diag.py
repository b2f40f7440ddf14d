# SPDX-License-Identifier: Apache-2.0
"""Destroy a TCP socket of another process with SOCK_DESTROY, as `ss --kill` does.

The request names the socket by its addresses and its cookie, so it never hits a later socket on the
same port. The app's next call fails with ECONNABORTED; its peer receives a reset. Needs
CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY. Numbers: linux/sock_diag.h, inet_diag.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address

from ztunnel.datapath import netns
from ztunnel.datapath.netlink import protocol
from ztunnel.mesh.model import SocketAddress

LOOPBACK_IFINDEX = 1  # lo is always the first interface of a netns

_SOCK_DESTROY = 21
_ALL_STATES = 0xFFFFFFFF
_INET_DIAG_REQ = struct.Struct("=BBBxI2s2s16s16sIQ")  # struct inet_diag_req_v2 with its sockid


def destroy(
    netns_fd: int,
    source: SocketAddress,
    destination: SocketAddress,
    cookie: int,
    *,
    interface: int = 0,
) -> bool:
    """Destroy the connecting socket of a connection; False if it is closed already.

    `interface` is the index of the interface that the socket is bound to, 0 for none:
    LOOPBACK_IFINDEX for a socket that the BPF programs cut off. Raises OSError (EOPNOTSUPP if the
    kernel lacks SOCK_DESTROY).
    """
    with netns.entered(netns_fd):
        link = protocol.open_socket(protocol.NETLINK_SOCK_DIAG)
    body = _request(source, destination, cookie, interface)
    with link:
        try:
            list(protocol.request(link, _SOCK_DESTROY, protocol.NLM_F_ACK, body))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise OSError(
                error.errno, f"destroy {source} -> {destination}: {error.strerror}"
            ) from error
    return True


def _request(
    source: SocketAddress, destination: SocketAddress, cookie: int, interface: int
) -> bytes:
    return _INET_DIAG_REQ.pack(
        socket.AF_INET6 if ":" in source.ip else socket.AF_INET,
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
