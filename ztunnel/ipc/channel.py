# SPDX-License-Identifier: Apache-2.0
"""Sends and receives messages with file descriptors over an AF_UNIX SOCK_SEQPACKET socket.

One packet is one message with its descriptors. A stream socket preserves neither message
boundaries nor the association of descriptors with messages (docs/decisions/0002).
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

MAX_MESSAGE_BYTES = 1 << 20  # of one packet; senders split larger content
MAX_FDS = 253  # SCM_MAX_FD, include/net/scm.h
SEND_BUFFER_BYTES = 4 << 20  # several packets of the maximum size

_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; needs CAP_NET_ADMIN

# Of a MessagePack decoder. It skips unknown fields recursively, whatever the expected type is.
DECODE_ERRORS = (msgspec.MsgspecError, RecursionError)

Incoming = TypeVar("Incoming")


class LinkError(Exception):
    """The peer violated the protocol; close the session."""


class DescriptorsLostError(LinkError):
    """This process has too few free descriptors for a message; close the session and wait."""


class Channel(Generic[Incoming]):
    """One side of the link. `Incoming` is the union of messages that this side accepts.

    A non-blocking socket raises BlockingIOError.
    """

    def __init__(self, sock: socket.socket, incoming: type[Incoming]) -> None:
        self.sock = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming)
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        _enlarge_send_buffer(sock)

    def fileno(self) -> int:
        """The socket's descriptor, for event loops."""
        return self.sock.fileno()

    def encode(self, message: msgspec.Struct) -> bytes:
        """The packet of a message. Raises LinkError if it exceeds MAX_MESSAGE_BYTES."""
        packet = self._encoder.encode(message)
        if len(packet) > MAX_MESSAGE_BYTES:
            raise LinkError(
                f"{type(message).__name__} is {len(packet)} bytes; limit {MAX_MESSAGE_BYTES}"
            )
        return packet

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send one message with its descriptors. The caller still owns them."""
        self.send_packet(self.encode(message), fds)

    def send_packet(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send a packet from `encode`, which may be sent to several workers."""
        if len(fds) > MAX_FDS:
            raise LinkError(f"{len(fds)} descriptors in one message; limit {MAX_FDS}")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([packet], rights, socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[Incoming, list[int]] | None:
        """The next message and its close-on-exec descriptors; None at end of file.

        The caller owns the descriptors. Raises LinkError for an invalid message, and
        DescriptorsLostError if the kernel could not install all descriptors; it closes the
        message's descriptors in both cases.
        """
        size, rights, flags, _ = self.sock.recvmsg_into(
            [self._buffer], socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
        )
        fds = _descriptors(rights)
        if size == 0:
            _close_all(fds)
            return None
        if flags & socket.MSG_TRUNC:
            _close_all(fds)
            raise LinkError("packet larger than the receive buffer")
        if flags & socket.MSG_CTRUNC:  # room for MAX_FDS was provided: unix(7), SCM_RIGHTS
            _close_all(fds)
            raise DescriptorsLostError("out of descriptors: a message arrived without its own")
        try:
            return self._decoder.decode(memoryview(self._buffer)[:size]), fds
        except DECODE_ERRORS as error:
            _close_all(fds)
            raise LinkError(f"invalid message: {error}") from error

    def close(self) -> None:
        """Close the socket. The peer reads end of file."""
        self.sock.close()


def _enlarge_send_buffer(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
    except PermissionError:  # workers are unprivileged, and send only small messages
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


def _descriptors(rights: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
