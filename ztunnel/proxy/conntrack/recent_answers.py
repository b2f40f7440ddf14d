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

from ztunnel.dns.addresses import V4_MAPPED

REGIONS = 256
SLOTS = 128  # addresses of a pod, at most
MAX_AGE_S = 600.0  # applications keep answers for longer than their TTL
MAX_NAME_BYTES = 253
# Netns cookie, time, address, length of the name; the name follows
_HEAD = struct.Struct("=Qd16sB")
_CHECKSUM = struct.Struct("=I")  # of head and name, in front of them
_ENTRY_BYTES = _CHECKSUM.size + _HEAD.size + MAX_NAME_BYTES
TABLE_BYTES = REGIONS * SLOTS * _ENTRY_BYTES  # 9.5 MB; the kernel provides pages that are in use


class RecentAnswers:
    """Create it before the workers are forked. `clock` is the same in all of them, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._memory = mmap.mmap(-1, TABLE_BYTES)  # anonymous, shared

    def record(self, pod: int, address: bytes, name: str) -> bool:
        """Record an answer to a pod (netns cookie); returns whether it evicted another one.

        `address` has 16 bytes, see `ztunnel.dns.addresses.answer_addresses`.
        """
        octets = name.encode("ascii", "replace")[:MAX_NAME_BYTES]
        now, at = self._clock(), _offset(pod, address)
        old_pod, when, old_address, _ = _HEAD.unpack_from(self._memory, at + _CHECKSUM.size)
        body = _HEAD.pack(pod, now, address, len(octets)) + octets
        entry = _CHECKSUM.pack(zlib.crc32(body)) + body
        self._memory[at : at + len(entry)] = entry
        is_other = (old_pod, old_address) != (pod, address)
        return bool(old_pod) and is_other and now - when <= MAX_AGE_S

    def name(self, pod: int, ip: str) -> str:
        """Return the name that led a pod to an address (canonical); empty if it is not known."""
        address = _packed(ip)
        at = _offset(pod, address)
        octets = self._memory[at : at + _ENTRY_BYTES]
        found_pod, when, found_address, length = _HEAD.unpack_from(octets, _CHECKSUM.size)
        end = _CHECKSUM.size + _HEAD.size + length
        (checksum,) = _CHECKSUM.unpack_from(octets)
        is_whole = end <= len(octets) and checksum == zlib.crc32(octets[_CHECKSUM.size : end])
        if not is_whole or (found_pod, found_address) != (pod, address):
            return ""
        if self._clock() - when > MAX_AGE_S:
            return ""
        return octets[end - length : end].decode("ascii", "replace")


def _packed(ip: str) -> bytes:
    address = ip_address(ip)
    return address.packed if address.version == 6 else V4_MAPPED + address.packed


def _offset(pod: int, packed: bytes) -> int:
    slot = zlib.crc32(packed) % SLOTS
    return (pod % REGIONS * SLOTS + slot) * _ENTRY_BYTES
