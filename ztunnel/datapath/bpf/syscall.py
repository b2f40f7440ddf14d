# SPDX-License-Identifier: Apache-2.0
"""bpf(2) by ctypes: pins, links and map elements.

BCC compiles and loads (in the loader process only); what stays resident needs just these few
commands and no LLVM. Command and field numbers: linux/bpf.h.
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
_ATTR_SIZE = 128
BPF_F_RDONLY = 1 << 3
BPF_ANY = 0
BPF_NOEXIST = 1
LOOKUP_BATCH_ENTRIES = 4096  # entries of a map taken at a time


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
    """enum bpf_attach_type, as far as we attach."""

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
    """enum bpf_prog_type, as far as we load."""

    SOCK_OPS = 13
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25
    SK_LOOKUP = 30


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: Command, attr: bytes) -> int:
    """Call bpf(2); returns its result or raises OSError naming the command."""
    return _bpf_at(command, ctypes.create_string_buffer(attr, _ATTR_SIZE))


def _bpf_at(command: Command, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """The same on an attr in place, where some commands leave answers; _ATTR_SIZE bytes."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) number unknown on {platform.machine()}")
    result: int = _libc.syscall(
        ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(_ATTR_SIZE)
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf({command.name}): {os.strerror(number)}")
    return result


def pin(fd: int, path: Path) -> None:
    """Give a program, map or link a name in bpffs, which keeps it alive."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(Command.OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0))


def open_pinned(path: Path, *, read_only: bool = False) -> int:
    """Open a pinned object: a new descriptor. FileNotFoundError when there is none."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    flags = BPF_F_RDONLY if read_only else 0
    return _bpf(Command.OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, flags))


def link_create(program: int, target: int, attach: AttachType) -> int:
    """Attach a program to a cgroup or netns descriptor; the link's descriptor."""
    return _bpf(Command.LINK_CREATE, struct.pack("=IIII", program, target, attach, 0))


def link_update(link: int, program: int) -> None:
    """Put another program under a link, atomically. ENOLINK when its target is gone."""
    _bpf(Command.LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))


def link_detach(link: int) -> None:
    """End a link's effect at once, whoever else holds it open. No error when it has ended."""
    _bpf(Command.LINK_DETACH, struct.pack("=I", link))


def enable_stats() -> int:
    """Have programs timed and counted while the descriptor is open (BPF_STATS_RUN_TIME)."""
    return _bpf(Command.ENABLE_STATS, struct.pack("=I", 0))


def object_info(fd: int, size: int) -> bytes:
    """The kernel's description of a program or map, `size` bytes of it, zeroes where it ends."""
    buffer = ctypes.create_string_buffer(size)
    _bpf(Command.OBJ_GET_INFO, struct.pack("=IIQ", fd, size, ctypes.addressof(buffer)))
    return buffer.raw


class RawMap:
    """A map by descriptor: bytes in, bytes out. Sizes in bytes as in the kernel."""

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
        """The value under `key`, None when absent."""
        value = ctypes.create_string_buffer(self.value_size)
        try:
            self._call(Command.MAP_LOOKUP, key, value)
        except FileNotFoundError:
            return None
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Write an element. OSError E2BIG when the map is full."""
        self._call(
            Command.MAP_UPDATE, key, ctypes.create_string_buffer(value, self.value_size), flags
        )

    def delete(self, key: bytes) -> bool:
        """Remove an element; False when there was none."""
        try:
            self._call(Command.MAP_DELETE, key, None)
        except FileNotFoundError:
            return False
        return True

    def keys(self) -> Iterator[bytes]:
        """All keys. A key removed meanwhile restarts the walk, so a key may come twice."""
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
        """Keys with values, each key once; elements removed meanwhile are left out."""
        for key in dict.fromkeys(self.keys()):
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def count(self) -> int:
        """How many entries a hash map has; those that come and go meanwhile may be missed."""
        keys = ctypes.create_string_buffer(LOOKUP_BATCH_ENTRIES * self.key_size)
        values = ctypes.create_string_buffer(LOOKUP_BATCH_ENTRIES * self.value_size)
        total, cursor = 0, None
        while True:
            found, cursor = _lookup_batch(self.fd, cursor, keys, values)
            total += found
            if cursor is None:
                return total

    def close(self) -> None:
        """Close the descriptor; the pin keeps the map."""
        os.close(self.fd)


def possible_cpus() -> int:
    """Length of a per-CPU value: the kernel's possible CPUs, not only the online ones."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


def _lookup_batch(
    fd: int,
    cursor: bytes | None,
    keys: ctypes.Array[ctypes.c_char],
    values: ctypes.Array[ctypes.c_char],
) -> tuple[int, bytes | None]:
    """The next entries of a hash map, BATCH at most: how many, and where to go on; None: the end.

    `cursor` is None to begin with.
    """
    start = ctypes.create_string_buffer(cursor or b"", 4)
    after = ctypes.create_string_buffer(4)
    at = [ctypes.addressof(each) for each in (start, after, keys, values)]
    if cursor is None:
        at[0] = 0
    attr = ctypes.create_string_buffer(
        struct.pack("=QQQQIIQQ", *at, LOOKUP_BATCH_ENTRIES, fd, 0, 0), _ATTR_SIZE
    )
    is_end = False
    try:
        _bpf_at(Command.MAP_LOOKUP_BATCH, attr)
    except FileNotFoundError:
        is_end = True
    count = struct.unpack_from("=I", attr.raw, 32)[0]
    return count, None if is_end else after.raw
