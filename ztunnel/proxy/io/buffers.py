# SPDX-License-Identifier: Apache-2.0
"""Large reusable byte buffers: the relay allocates nothing per chunk.

A tunnel owns a buffer only while it has unsent bytes, so idle tunnels need no buffer.
"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.bindings.openssl.binding import Binding

# Larger buffers gain nothing (bench/relay.py), smaller ones cost system calls.
BUFFER_BYTES = 256 * 1024
# By how much TLS 1.3 may lengthen BUFFER_BYTES: 22 for each of 16 records, and some reserve.
TLS_OVERHEAD_BYTES = 1024
MAX_FREE_BUFFERS = 16  # further ones return to the allocator


class Buffer:
    """A bytearray of BUFFER_BYTES and TLS overhead, with views for Python and C made once."""

    __slots__ = ("data", "pointer", "view")

    def __init__(self) -> None:
        self.data = bytearray(BUFFER_BYTES + TLS_OVERHEAD_BYTES)
        self.view = memoryview(self.data)
        self.pointer: Any = Binding.ffi.from_buffer(self.data)


class BufferPool:
    """A stack of free buffers: the one used last, which is hottest in cache, is reused first."""

    def __init__(self) -> None:
        self._free: list[Buffer] = []
        self.scratch = Buffer()  # for bytes that never outlive one call
        self.wire = Buffer()  # the same, for ciphertext

    def acquire(self) -> Buffer:
        """A buffer with any content."""
        return self._free.pop() if self._free else Buffer()

    def release(self, buffer: Buffer) -> None:
        """Return a buffer; the caller must not use it any more."""
        if len(self._free) < MAX_FREE_BUFFERS:
            self._free.append(buffer)
