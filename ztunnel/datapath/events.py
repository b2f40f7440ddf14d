# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of connections by verdict, read from its ring buffer.

Layout: linux/bpf.h, BPF_MAP_TYPE_RINGBUF: one page with the reader's position, one with the
writer's, then the data, mapped twice in a row so that no record is ever cut. The reader comes by
the clock, as the writer wakes nobody. May import the datapath's own modules and `ztunnel.mesh`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ztunnel.datapath import layout, syscall
from ztunnel.datapath.layout import Ending
from ztunnel.mesh.model import SocketAddress

RING_BYTES = 2097152  # ZT_EVENT_BYTES
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER = 8
_POSITION = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection by verdict that is over; FOREIGN: one that is cut off and must be destroyed.

    `sent` and `received` are payload as the source counts it; `duration` is in seconds.
    """

    source: SocketAddress
    destination: SocketAddress
    netns_cookie: int
    destination_cookie: int
    owner: int
    duration: float
    sent: int
    received: int
    srtt_us: int
    retransmits: int
    ending: Ending


class Events:
    """The reading end; there must be one only. Raises FileNotFoundError."""

    def __init__(self, pin_dir: Path) -> None:
        fd = syscall.get(pin_dir / "maps" / "zt_events")
        page = mmap.PAGESIZE
        try:
            self._reader = mmap.mmap(fd, page)
            self._writer = mmap.mmap(
                fd, page + 2 * RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        finally:
            os.close(fd)

    def drain(self, most: int) -> list[Ended]:
        """The next events, at most so many."""
        found: list[Ended] = []
        at = _POSITION.unpack_from(self._reader)[0]
        end = _POSITION.unpack_from(self._writer)[0]
        while at < end and len(found) < most:
            start = mmap.PAGESIZE + at % RING_BYTES
            length = _LENGTH.unpack_from(self._writer, start)[0]
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED and size >= ctypes.sizeof(layout.Event):
                record = self._writer[start + _HEADER : start + _HEADER + size]
                found.append(_ended(record))
            at += (_HEADER + size + 7) // 8 * 8
        _POSITION.pack_into(self._reader, 0, at)
        return found

    def close(self) -> None:
        """Unmap; the pin keeps the buffer."""
        self._reader.close()
        self._writer.close()


def _ended(record: bytes) -> Ended:
    event = layout.Event.from_buffer_copy(record)
    key = event.key
    return Ended(
        source=layout.socket_address(bytes(key.src), bytes(key.sport)),
        destination=layout.socket_address(bytes(key.dst), bytes(key.dport)),
        netns_cookie=event.netns,
        destination_cookie=event.dst_netns,
        owner=event.owner,
        duration=event.duration_ns / 1e9,
        sent=event.sent,
        received=event.received,
        srtt_us=event.srtt_us,
        retransmits=event.retransmits,
        ending=Ending(event.ending),
    )
