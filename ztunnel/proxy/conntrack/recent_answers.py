# SPDX-License-Identifier: Apache-2.0
"""Which name a pod has recently resolved to an address: a hint for the access log.

The workers of a node share one table, because the worker that answers a query is not the one that
accepts the connection. It has a fixed size. A pod uses one region, so that it evicts names of its
own, and of pods that share its region, but is never shown names of another pod:

    region = netns cookie mod REGIONS,   slot = hash of the address mod SLOTS

A slot with a wrong checksum, which two workers wrote at once, counts as empty.
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib
from collections.abc import Callable
from ipaddress import ip_address

REGIONS = 256
SLOTS = 128  # addresses of a pod, at most
MAX_AGE_S = 600.0  # applications keep answers for longer than their TTL
MAX_NAME_BYTES = 253
# Checksum of the rest, netns cookie, time, address, length of the name, name
_ENTRY = struct.Struct(f"=IQd16sB{MAX_NAME_BYTES}s6x")
TABLE_BYTES = REGIONS * SLOTS * _ENTRY.size  # 9.5 MB; the kernel provides pages that are in use


class RecentAnswers:
    """Create it before the workers are forked. `clock` is the same in all of them, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._memory = mmap.mmap(-1, TABLE_BYTES)  # anonymous, shared

    def record(self, pod: int, ip: str, name: str) -> bool:
        """Record an answer to a pod (netns cookie); returns whether it evicted another one."""
        packed, octets = _packed(ip), name.encode("ascii", "replace")[:MAX_NAME_BYTES]
        at = _offset(pod, packed)
        old = self._read(at)
        body = _ENTRY.pack(0, pod, self._clock(), packed, len(octets), octets)
        checksum = zlib.crc32(body[4:])
        self._memory[at : at + _ENTRY.size] = checksum.to_bytes(4, "little") + body[4:]
        return old is not None and old[:2] != (pod, packed)

    def name(self, pod: int, ip: str) -> str:
        """Return the name that led a pod to an address; empty if it is not known."""
        packed = _packed(ip)
        found = self._read(_offset(pod, packed))
        return found[2] if found is not None and found[:2] == (pod, packed) else ""

    def _read(self, at: int) -> tuple[int, bytes, str] | None:
        """The pod, address and name of a slot; None if it is empty, expired or damaged."""
        octets = self._memory[at : at + _ENTRY.size]
        checksum, pod, when, packed, length, name = _ENTRY.unpack(octets)
        if not pod or checksum != zlib.crc32(octets[4:]):
            return None
        if self._clock() - when > MAX_AGE_S:
            return None
        return pod, packed, name[:length].decode("ascii", "replace")


def _packed(ip: str) -> bytes:
    address = ip_address(ip)
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def _offset(pod: int, packed: bytes) -> int:
    slot = zlib.crc32(packed) % SLOTS
    return (pod % REGIONS * SLOTS + slot) * _ENTRY.size
