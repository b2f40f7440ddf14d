# SPDX-License-Identifier: Apache-2.0
"""What a worker counted and has not told yet, in memory that outlives it: the agent has it too.

    header   number (u64): of the last `Counted` that was told    rows (u64)
    row      opened closed failed sent received (u64), length of labels (u32), labels (MessagePack)

A worker writes rows as it counts and begins anew when it has told. When it dies by force the agent
adds what is there, unless it was told: then the number is behind. The memory is sealed, so that a
worker can't take it away from under the agent, and all in it is looked at as what a stranger wrote.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

import msgspec

from ztunnel.ipc.messages import Count

MOST_ROWS = 512  # between two words to the agent; those beyond go with a killed worker
_HEADER = struct.Struct("=QQ")
_COUNTS = struct.Struct("=QQQQQ")
_LENGTH = struct.Struct("=I")
_ROW = 1536  # bytes; labels are some twenty names
_LABELS_AT = _COUNTS.size + _LENGTH.size
_SIZE = _HEADER.size + MOST_ROWS * _ROW
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, ...])


class CheckpointError(ValueError):
    """A descriptor that is no such memory."""


class Writer:
    """The worker's side. `fd` is for the agent."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ztunnel-remains", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, _SIZE)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self._memory = mmap.mmap(self.fd, _SIZE)
        self._slots: dict[tuple[str, ...], int] = {}
        self._number = 0

    def put(self, row: Count) -> None:
        """Set the counts of a label set, which are since `begin`."""
        slot = self._slots.get(row.labels)
        if slot is None:
            labels = _encoder.encode(row.labels)
            slot = len(self._slots)
            if slot == MOST_ROWS or len(labels) > _ROW - _LABELS_AT:
                return
            at = _HEADER.size + slot * _ROW
            _LENGTH.pack_into(self._memory, at + _COUNTS.size, len(labels))
            self._memory[at + _LABELS_AT : at + _LABELS_AT + len(labels)] = labels
            self._slots[row.labels] = slot
        counts = (row.opened, row.closed, row.failed, row.sent, row.received)
        _COUNTS.pack_into(self._memory, _HEADER.size + slot * _ROW, *counts)
        if slot + 1 == len(self._slots):  # last, so that what is seen is whole
            _HEADER.pack_into(self._memory, 0, self._number, slot + 1)

    def begin(self, number: int) -> None:
        """All up to `Counted(number)` is told: from here anew."""
        self._number = number
        self._slots.clear()
        _HEADER.pack_into(self._memory, 0, number, 0)

    def close(self) -> None:
        """Let go of it."""
        self._memory.close()
        os.close(self.fd)


class Reader:
    """The agent's side."""

    def __init__(self, fd: int) -> None:
        """Look at a worker's memory; the descriptor stays the caller's. Raises RemainsError."""
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            if not seals & fcntl.F_SEAL_SHRINK or os.fstat(fd).st_size != _SIZE:
                raise CheckpointError("not sealed, or of another size")
            self._memory = mmap.mmap(fd, _SIZE, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(str(error)) from error

    def rows(self, told: int) -> list[Count]:
        """What is in it, if that was not told: `told` is the number of the last `Counted`."""
        number, count = _HEADER.unpack_from(self._memory)
        if number < told:
            return []
        found = []
        for slot in range(min(count, MOST_ROWS)):
            row = self._row(_HEADER.size + slot * _ROW)
            if row is None:
                break
            found.append(row)
        return found

    def close(self) -> None:
        """Let go of it."""
        self._memory.close()

    def _row(self, at: int) -> Count | None:
        counts = _COUNTS.unpack_from(self._memory, at)
        (length,) = _LENGTH.unpack_from(self._memory, at + _COUNTS.size)
        if length > _ROW - _LABELS_AT:
            return None
        try:
            labels = _decoder.decode(self._memory[at + _LABELS_AT : at + _LABELS_AT + length])
        except msgspec.DecodeError:
            return None
        return Count(labels, *counts)
