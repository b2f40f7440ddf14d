# SPDX-License-Identifier: Apache-2.0
"""Parsing of netlink replies; the kernel's side is a socket pair."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from ztunnel.datapath import netns
from ztunnel.datapath.netlink import protocol, rtnetlink, sock_diag
from ztunnel.mesh.model import SocketAddress

RTM_NEWADDR = 20
RTM_GETADDR = 22
NLMSG_ERROR = 2
NLMSG_DONE = 3


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The kernel's end of every netlink socket that the code under test opens."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(5)
    monkeypatch.setattr(protocol, "open_socket", lambda number: ours)
    monkeypatch.setattr(netns, "entered", lambda fd: nullcontext())  # needs no CAP_SYS_ADMIN
    with ours, theirs:
        yield theirs


def message(kind: int, body: bytes) -> bytes:
    length = 16 + len(body)
    padding = bytes(-length % 4)
    return struct.pack("=IHHII", length, kind, 2, 1, 0) + body + padding


def address(ip: str, scope: int, *, local: str = "") -> bytes:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    body = struct.pack("=BBBBI", family, 24, 0, scope, 2)
    for kind, text in ((1, ip), (2, local)):
        if text:
            packed = socket.inet_pton(family, text)
            body += struct.pack("=HH", 4 + len(packed), kind) + packed
    return message(RTM_NEWADDR, body)


def test_reachable_addresses_exclude_loopback_and_link_local(kernel: socket.socket) -> None:
    kernel.send(address("127.0.0.1", 254) + address("10.0.0.7", 0) + address("fe80::1", 253))
    kernel.send(address("2001:db8::7", 0) + message(NLMSG_DONE, bytes(4)))
    assert rtnetlink.reachable_addresses() == ["10.0.0.7", "2001:db8::7"]
    length, kind, flags, *_ = struct.unpack_from("=IHHII", sent := kernel.recv(4096))
    assert (length, kind, flags) == (len(sent), RTM_GETADDR, 0x301)


def test_local_end_of_a_point_to_point_link_is_listed(kernel: socket.socket) -> None:
    kernel.send(address("10.0.0.1", 0, local="10.0.0.2") + message(NLMSG_DONE, bytes(4)))
    assert rtnetlink.reachable_addresses() == ["10.0.0.2"]


def test_error_reply_to_a_dump_names_what_failed(kernel: socket.socket) -> None:
    kernel.send(message(NLMSG_ERROR, struct.pack("=i", -errno.EPERM) + bytes(16)))
    with pytest.raises(PermissionError, match="list the node's addresses"):
        rtnetlink.reachable_addresses()


@pytest.mark.parametrize(
    ("number", "result"), [(0, True), (errno.ENOENT, False), (errno.ESTALE, False)]
)
def test_destroy_reports_whether_the_socket_existed(
    kernel: socket.socket, number: int, result: bool
) -> None:
    kernel.send(message(NLMSG_ERROR, struct.pack("=i", -number) + bytes(16)))
    assert _destroy() is result


def test_destroy_without_kernel_support_raises_with_the_addresses(kernel: socket.socket) -> None:
    kernel.send(message(NLMSG_ERROR, struct.pack("=i", -errno.EOPNOTSUPP) + bytes(16)))
    with pytest.raises(OSError, match=r"10\.0\.0\.1:1 -> 10\.0\.0\.2:2") as caught:
        _destroy()
    assert caught.value.errno == errno.EOPNOTSUPP


def _destroy() -> bool:
    return sock_diag.destroy(0, SocketAddress("10.0.0.1", 1), SocketAddress("10.0.0.2", 2), 7)
