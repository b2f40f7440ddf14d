# SPDX-License-Identifier: Apache-2.0
"""The addresses of this network namespace, asked of the kernel by rtnetlink.

One dump needs no library: pyroute2 is 10 MB in a process that stays.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

RT_SCOPE_LINK = 253  # linux/rtnetlink.h; wider scopes have smaller numbers

_NETLINK_ROUTE = 0  # linux/netlink.h
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST_DUMP = 0x1 | 0x300
_RTM_NEWADDR = 20
_RTM_GETADDR = 22
_IFA_ADDRESS = 1  # linux/if_addr.h; the far end of a point-to-point link, else ours
_IFA_LOCAL = 2
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_ERROR = struct.Struct("=i")
_ANSWER = 64 * 1024  # bytes; the kernel fills a page or two at a time


def reachable_addresses() -> list[str]:
    """Those that other hosts may use: neither loopback nor of one link only. Raises OSError."""
    body = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    size = _HEADER.size + len(body)
    found: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as link:
        link.send(_HEADER.pack(size, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0) + body)
        while True:
            for kind, message in _split(link.recv(_ANSWER)):
                if kind == _NLMSG_DONE:
                    return sorted(found)
                if kind == _NLMSG_ERROR:
                    number = -_ERROR.unpack_from(message)[0]
                    raise OSError(number, f"addresses of the node: {os.strerror(number)}")
                if kind == _RTM_NEWADDR:
                    found.update(_reachable(message))


def _split(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of one read: type and what follows the header."""
    at = 0
    while at + _HEADER.size <= len(answer):
        size, kind, *_ = _HEADER.unpack_from(answer, at)
        yield kind, answer[at + _HEADER.size : at + size]
        at += max(_aligned(size), _HEADER.size)


def _reachable(message: bytes) -> set[str]:
    family, _, _, scope, _ = _ADDRESS.unpack_from(message)
    if family not in (socket.AF_INET, socket.AF_INET6) or scope >= RT_SCOPE_LINK:
        return set()
    attributes: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, at)
        attributes[kind] = message[at + _ATTRIBUTE.size : at + size]
        at += max(_aligned(size), _ATTRIBUTE.size)
    own = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    return {socket.inet_ntop(family, own)} if own else set()


def _aligned(size: int) -> int:
    return (size + 3) & ~3
