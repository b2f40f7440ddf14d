# SPDX-License-Identifier: Apache-2.0
"""Packets with file descriptors that wait until a worker's socket accepts them; bounded."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ztunnel.ipc.channel import Channel, LinkError

MAX_QUEUED_BYTES = 16 << 20  # beyond the first snapshot
MAX_QUEUED_FDS = 4096


class SendQueue:
    """Sends at once while the socket accepts packets, and queues the rest in order."""

    def __init__(self, channel: Channel[Any], on_failure: Callable[[str], None]) -> None:
        """`on_failure` is called when the socket fails or a limit is exceeded; it must `close`."""
        self._channel = channel
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._packets: deque[tuple[bytes, list[int]]] = deque()
        self._fds = 0
        self._max_bytes = MAX_QUEUED_BYTES
        self._closed = False
        self.queued_bytes = 0

    @property
    def is_empty(self) -> bool:
        return not self._packets

    def raise_limit(self, by_bytes: int) -> None:
        """Accept more until the queue is empty: a snapshot is as large as the mesh."""
        self._max_bytes += by_bytes

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send a packet with copies of `fds`, or queue it."""
        if self._closed or (not self._packets and self._send_now(packet, fds)):
            return
        if self._closed:  # by the attempt to send
            return
        try:
            copies = _duplicates(fds)  # the caller may close its own before these are sent
        except OSError as error:
            self._on_failure(f"descriptors not copied: {error}")
            return
        self._packets.append((packet, copies))
        self.queued_bytes += len(packet)
        self._fds += len(fds)
        if self.queued_bytes > self._max_bytes or self._fds > MAX_QUEUED_FDS:
            self._on_failure(f"worker reads too slowly: {self.queued_bytes} bytes queued")

    def close(self) -> None:
        """Drop the queue. The channel stays open."""
        self._closed = True
        self._loop.remove_writer(self._channel.fileno())
        while self._packets:
            close_fds(self._packets.popleft()[1])

    def _send_now(self, packet: bytes, fds: Sequence[int]) -> bool:
        try:
            self._channel.send_packet(packet, fds)
        except BlockingIOError:
            self._loop.add_writer(self._channel.fileno(), self._flush)
            return False
        except (BrokenPipeError, ConnectionResetError):
            # The worker has exited, but its last reports are unread: the session closes at EOF.
            return True
        except (OSError, LinkError) as error:
            self._on_failure(str(error))
            return False
        return True

    def _flush(self) -> None:
        while self._packets:
            packet, fds = self._packets[0]
            if not self._send_now(packet, fds):
                return
            self._packets.popleft()
            self.queued_bytes -= len(packet)
            self._fds -= len(fds)
            close_fds(fds)
        self._max_bytes = MAX_QUEUED_BYTES
        self._loop.remove_writer(self._channel.fileno())


def _duplicates(fds: Sequence[int]) -> list[int]:
    """Copies of all descriptors, or none. Raises OSError."""
    copies: list[int] = []
    try:
        copies.extend(os.dup(fd) for fd in fds)
    except OSError:
        close_fds(copies)
        raise
    return copies


def close_fds(fds: list[int]) -> None:
    """Close all descriptors and empty the list."""
    while fds:
        os.close(fds.pop())
