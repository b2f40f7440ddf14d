# SPDX-License-Identifier: Apache-2.0
"""The addresses of this network namespace, from rtnetlink (linux/rtnetlink.h, linux/if_addr.h)."""

from __future__ import annotations

import socket
import struct

from ztunnel.datapath.netlink import protocol

RT_SCOPE_LINK = 253  # wider scopes have smaller numbers

_RTM_NEWADDR = 20
_RTM_GETADDR = 22
_IFA_ADDRESS = 1  # the remote end of a point-to-point link, else the local address
_IFA_LOCAL = 2
_IFADDRMSG = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index


def reachable_addresses() -> list[str]:
    """The addresses that other hosts can reach: wider in scope than one link. Raises OSError."""
    body = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found: set[str] = set()
    try:
        with protocol.open_socket(protocol.NETLINK_ROUTE) as link:
            for kind, reply in protocol.request(link, _RTM_GETADDR, protocol.NLM_F_DUMP, body):
                if kind == _RTM_NEWADDR and (address := _reachable_address(reply)):
                    found.add(address)
    except OSError as error:
        raise OSError(error.errno, f"list the node's addresses: {error.strerror}") from error
    return sorted(found)


def _reachable_address(message: bytes) -> str:
    """The address of an RTM_NEWADDR message; empty if other hosts cannot reach it."""
    family, _, _, scope, _ = _IFADDRMSG.unpack_from(message)
    if family not in (socket.AF_INET, socket.AF_INET6) or scope >= RT_SCOPE_LINK:
        return ""
    attributes = protocol.attributes(message, _IFADDRMSG.size)
    local = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    return socket.inet_ntop(family, local) if local else ""
