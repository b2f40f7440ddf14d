# SPDX-License-Identifier: Apache-2.0
"""Big byte buffers, used again and again: nothing is allocated per chunk.

A buffer belongs to a tunnel only while it holds bytes that could not be sent yet, so idle
tunnels cost none. Imports the standard library only.
"""

from __future__ import annotations

BUFFER_SIZE = 256 * 1024  # bytes; larger gains nothing (bench/relay.py), smaller costs system calls
KEPT = 16  # free buffers kept; more go back to the allocator


class Buffer:
    """A bytearray with its memoryview made once."""

    __slots__ = ("data", "view")

    def __init__(self) -> None:
        self.data = bytearray(BUFFER_SIZE)
        self.view = memoryview(self.data)


class BufferPool:
    """A stack of free buffers: the hottest in cache is taken first."""

    def __init__(self) -> None:
        self._free: list[Buffer] = []
        self.scratch = Buffer()  # for bytes that never outlive one call

    def take(self) -> Buffer:
        """A buffer of BUFFER_SIZE with any content."""
        return self._free.pop() if self._free else Buffer()

    def give(self, buffer: Buffer) -> None:
        """Give one back; the caller must not use it any more."""
        if len(self._free) < KEPT:
            self._free.append(buffer)
