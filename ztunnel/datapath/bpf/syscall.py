# SPDX-License-Identifier: Apache-2.0
"""bpf(2) by ctypes: pins, links and map elements.

The loader process compiles and loads with BCC. Resident processes need only these commands and no
LLVM. Command and field numbers: linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_ATTR_BYTES = 128
BPF_F_RDONLY = 1 << 3
BPF_ANY = 0
BPF_NOEXIST = 1
LOOKUP_BATCH_ENTRIES = 4096  # entries per BPF_MAP_LOOKUP_BATCH


class Command(IntEnum):
    """enum bpf_cmd."""

    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    MAP_NEXT_KEY = 4
    OBJ_PIN = 6
    OBJ_GET = 7
    OBJ_GET_INFO = 15
    MAP_LOOKUP_BATCH = 24
    LINK_CREATE = 28
    LINK_UPDATE = 29
    ENABLE_STATS = 32
    LINK_DETACH = 34


class AttachType(IntEnum):
    """enum bpf_attach_type, as far as used."""

    SOCK_OPS = 3
    CONNECT4 = 10
    CONNECT6 = 11
    UDP4_SENDMSG = 14
    UDP6_SENDMSG = 15
    UDP4_RECVMSG = 19
    UDP6_RECVMSG = 20
    GETSOCKOPT = 21
    SETSOCKOPT = 22
    GETPEERNAME4 = 29
    GETPEERNAME6 = 30
    GETSOCKNAME4 = 31
    GETSOCKNAME6 = 32
    SK_LOOKUP = 36


class ProgramType(IntEnum):
    """enum bpf_prog_type, as far as used."""

    SOCK_OPS = 13
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25
    SK_LOOKUP = 30


class LinkType(IntEnum):
    """enum bpf_link_type, as far as used."""

    CGROUP = 3
    NETNS = 5


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: Command, attr: bytes) -> int:
    """Call bpf(2) and return its result. Raises OSError with the name of the command."""
    return _bpf_at(command, ctypes.create_string_buffer(attr, _ATTR_BYTES))


def _bpf_at(command: Command, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Call bpf(2) on an attr of _ATTR_BYTES bytes, into which some commands write results."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) is unknown on {platform.machine()}")
    result: int = _libc.syscall(
        ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(_ATTR_BYTES)
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf({command.name}): {os.strerror(number)}")
    return result


def pin(fd: int, path: Path) -> None:
    """Pin a program, map or link in bpffs; it exists as long as the pin."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(Command.OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0))


def open_pinned(path: Path, *, read_only: bool = False) -> int:
    """Open a pinned object and return a new descriptor. Raises FileNotFoundError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    flags = BPF_F_RDONLY if read_only else 0
    return _bpf(Command.OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, flags))


def link_create(program: int, target: int, attach: AttachType) -> int:
    """Attach a program to a cgroup or netns descriptor; returns the link's descriptor."""
    return _bpf(Command.LINK_CREATE, struct.pack("=IIII", program, target, attach, 0))


def link_update(link: int, program: int) -> None:
    """Replace the program of a link atomically. Raises OSError (ENOLINK if its target is gone)."""
    _bpf(Command.LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))


def link_detach(link: int) -> None:
    """Detach a link at once, even if other processes have it open. Idempotent."""
    _bpf(Command.LINK_DETACH, struct.pack("=I", link))


def enable_stats() -> int:
    """Enable BPF_STATS_RUN_TIME while the returned descriptor is open."""
    return _bpf(Command.ENABLE_STATS, struct.pack("=I", 0))


def object_info(fd: int, size: int) -> bytes:
    """The first `size` bytes of a program's, map's or link's info struct, padded with zeroes."""
    buffer = ctypes.create_string_buffer(size)
    _bpf(Command.OBJ_GET_INFO, struct.pack("=IIQ", fd, size, ctypes.addressof(buffer)))
    return buffer.raw


class RawMap:
    """A map by descriptor. Keys and values are bytes of the sizes that the kernel uses."""

    def __init__(self, fd: int, key_size: int, value_size: int) -> None:
        self.fd = fd
        self.key_size = key_size
        self.value_size = value_size

    @classmethod
    def open(cls, path: Path, key_size: int, value_size: int, *, read_only: bool) -> RawMap:
        """Open a pinned map. Raises FileNotFoundError, PermissionError."""
        return cls(open_pinned(path, read_only=read_only), key_size, value_size)

    def _call(self, command: Command, key: bytes | None, value: object, flags: int = 0) -> None:
        key_buffer = None if key is None else ctypes.create_string_buffer(key, self.key_size)
        key_at = 0 if key_buffer is None else ctypes.addressof(key_buffer)
        value_at = 0 if value is None else ctypes.addressof(value)  # type: ignore[arg-type]
        _bpf(command, struct.pack("=IIQQQ", self.fd, 0, key_at, value_at, flags))

    def lookup(self, key: bytes) -> bytes | None:
        """The value of `key`; None if absent."""
        value = ctypes.create_string_buffer(self.value_size)
        try:
            self._call(Command.MAP_LOOKUP, key, value)
        except FileNotFoundError:
            return None
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Write an element. Raises OSError (E2BIG if the map is full)."""
        self._call(
            Command.MAP_UPDATE, key, ctypes.create_string_buffer(value, self.value_size), flags
        )

    def delete(self, key: bytes) -> bool:
        """Delete an element; False if there was none."""
        try:
            self._call(Command.MAP_DELETE, key, None)
        except FileNotFoundError:
            return False
        return True

    def keys(self) -> Iterator[bytes]:
        """All keys. Deletion of the current key restarts the iteration, so a key can repeat."""
        key: bytes | None = None
        following = ctypes.create_string_buffer(self.key_size)
        while True:
            try:
                self._call(Command.MAP_NEXT_KEY, key, following)
            except FileNotFoundError:
                return
            key = following.raw
            yield key

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values, each key once, without elements that are deleted meanwhile."""
        for key in dict.fromkeys(self.keys()):
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def count(self) -> int:
        """The number of entries of a hash map; may miss concurrent changes."""
        keys = ctypes.create_string_buffer(LOOKUP_BATCH_ENTRIES * self.key_size)
        values = ctypes.create_string_buffer(LOOKUP_BATCH_ENTRIES * self.value_size)
        total, cursor = 0, None
        while True:
            found, cursor = _lookup_batch(self.fd, cursor, keys, values)
            total += found
            if cursor is None:
                return total

    def close(self) -> None:
        """Close the descriptor; the pin remains."""
        os.close(self.fd)


def possible_cpus() -> int:
    """The number of possible CPUs, which is the length of a per-CPU value."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


def _lookup_batch(
    fd: int,
    cursor: bytes | None,
    keys: ctypes.Array[ctypes.c_char],
    values: ctypes.Array[ctypes.c_char],
) -> tuple[int, bytes | None]:
    """Read the next LOOKUP_BATCH_ENTRIES of a hash map; returns their number and the next cursor.

    The cursor is None for the first call, and None is returned after the last entry.
    """
    start = ctypes.create_string_buffer(cursor or b"", 4)
    after = ctypes.create_string_buffer(4)
    at = [ctypes.addressof(each) for each in (start, after, keys, values)]
    if cursor is None:
        at[0] = 0
    attr = ctypes.create_string_buffer(
        struct.pack("=QQQQIIQQ", *at, LOOKUP_BATCH_ENTRIES, fd, 0, 0), _ATTR_BYTES
    )
    is_end = False
    try:
        _bpf_at(Command.MAP_LOOKUP_BATCH, attr)
    except FileNotFoundError:
        is_end = True
    count = struct.unpack_from("=I", attr.raw, 32)[0]
    return count, None if is_end else after.raw
