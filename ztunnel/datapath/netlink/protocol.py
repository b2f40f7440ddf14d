# SPDX-License-Identifier: Apache-2.0
"""Netlink requests and replies: headers, multi-part replies, errors. Numbers: linux/netlink.h."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SEQUENCE = 1  # one request per socket
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port id
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ERROR = struct.Struct("=i")
_RECEIVE_BUFFER_BYTES = 64 * 1024  # the kernel fills one or two pages at a time


def open_socket(protocol: int) -> socket.socket:
    """Open a netlink socket in the network namespace of the calling thread. Raises OSError."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)


def request(
    link: socket.socket, message_type: int, flags: int, body: bytes
) -> Iterator[tuple[int, bytes]]:
    """Send one request and yield its replies, each as (message type, body).

    Ends with the dump, or with the acknowledgement that `flags` requests. Raises OSError with the
    kernel's error number.
    """
    length = _HEADER.size + len(body)
    link.send(_HEADER.pack(length, message_type, flags | NLM_F_REQUEST, _SEQUENCE, 0) + body)
    while True:
        for reply_type, reply in _split(link.recv(_RECEIVE_BUFFER_BYTES)):
            if reply_type == _NLMSG_DONE:
                return
            if reply_type == _NLMSG_ERROR:
                number = -_ERROR.unpack_from(reply)[0]
                if number:
                    raise OSError(number, os.strerror(number))
                return
            yield reply_type, reply


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """The attributes that follow a fixed header of `offset` bytes, by type."""
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, attribute = _ATTRIBUTE.unpack_from(body, offset)
        found[attribute] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += max(_aligned(length), _ATTRIBUTE.size)
    return found


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of one read."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, message_type, *_ = _HEADER.unpack_from(data, offset)
        yield message_type, data[offset + _HEADER.size : offset + length]
        offset += max(_aligned(length), _HEADER.size)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
