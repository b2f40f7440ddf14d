# SPDX-License-Identifier: Apache-2.0
"""Reads events about connections that bypass the proxy from the ring buffer zt_events.

Layout (linux/bpf.h, BPF_MAP_TYPE_RINGBUF): a page with the consumer position, a page with the
producer position, then the data, mapped twice in a row so that every record is contiguous. The
agent polls, because the programs do not wake a reader.
"""

from __future__ import annotations

import mmap
import os
import struct
from functools import lru_cache
from pathlib import Path

import msgspec

from ztunnel.datapath.bpf import layout, syscall
from ztunnel.datapath.bpf.layout import CloseReason
from ztunnel.mesh.model import SocketAddress

RING_BYTES = 2097152  # ZT_EVENTS_BYTES
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER_BYTES = 8
_POSITION = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")
_EVENT = struct.Struct("=16s16s2s2s4xQQQQQQIIB7x")  # layout.Event
_text = lru_cache(maxsize=4096)(layout.unpacked)
_CLOSE_REASONS = tuple(CloseReason)  # by number: faster than a call of the class


class ConnectionEvent(msgspec.Struct, frozen=True):
    """A connection that bypassed the proxy and closed.

    UNEXPECTED_PEER: the connection is cut off, but still open, and must be destroyed. UDP_STRICT: a
    refused datagram. `sent` and `received` are payload bytes counted at the source; `duration` is
    in seconds.
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
    close_reason: CloseReason


class EventReader:
    """The consumer of the ring buffer; only one may exist. Raises FileNotFoundError."""

    def __init__(self, pin_dir: Path) -> None:
        fd = syscall.open_pinned(pin_dir / "maps" / "zt_events")
        page = mmap.PAGESIZE
        try:
            self._reader = mmap.mmap(fd, page)
            self._writer = mmap.mmap(
                fd, page + 2 * RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        finally:
            os.close(fd)

    def drain(self, max_events: int) -> list[ConnectionEvent]:
        """Read the next events, at most `max_events`."""
        found: list[ConnectionEvent] = []
        at = _POSITION.unpack_from(self._reader)[0]
        end = _POSITION.unpack_from(self._writer)[0]
        while at < end and len(found) < max_events:
            start = mmap.PAGESIZE + at % RING_BYTES
            length = _LENGTH.unpack_from(self._writer, start)[0]
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED and size >= _EVENT.size:
                record = self._writer[start + _HEADER_BYTES : start + _HEADER_BYTES + size]
                found.append(_decode(record))
            at += (_HEADER_BYTES + size + 7) // 8 * 8
        _POSITION.pack_into(self._reader, 0, at)
        return found

    def close(self) -> None:
        """Unmap the buffer; its pin remains."""
        self._reader.close()
        self._writer.close()


def _decode(record: bytes) -> ConnectionEvent:
    """Decode a record: one unpack and cached addresses, because there are thousands per second."""
    source, destination, sport, dport, *rest = _EVENT.unpack_from(record)
    owner, netns, dst_netns, duration, sent, received, srtt, retransmits, close_reason = rest
    return ConnectionEvent(
        source=SocketAddress(_text(source), int.from_bytes(sport, "big")),
        destination=SocketAddress(_text(destination), int.from_bytes(dport, "big")),
        netns_cookie=netns,
        destination_cookie=dst_netns,
        owner=owner,
        duration=duration / 1e9,
        sent=sent,
        received=received,
        srtt_us=srtt,
        retransmits=retransmits,
        close_reason=_CLOSE_REASONS[close_reason],
    )
