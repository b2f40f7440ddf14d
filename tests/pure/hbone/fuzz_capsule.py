# SPDX-License-Identifier: Apache-2.0
"""Hostile octets for the capsule reader and the connect-udp path, as many as one likes.

    python -m tests.pure.hbone.fuzz_capsule [RUNS] [SEED]

Mutated capsules in pieces of random size: nothing raises, and pieces give what the whole gives.
"""

from __future__ import annotations

import contextlib
import random
import sys

from ztunnel.hbone.capsule import CapsuleReader, datagram_header, varint
from ztunnel.mesh.address import AddressError
from ztunnel.mesh.masque import format_target, parse_target
from ztunnel.mesh.model import SocketAddress

_PATHS = [
    format_target(SocketAddress("10.0.0.1", 53)).encode(),
    format_target(SocketAddress("fd00::1", 443)).encode(),
]


def capsules(chance: random.Random) -> bytes:
    """Some capsules, some of them spoilt."""
    out = bytearray()
    for _ in range(chance.randrange(4)):
        value = chance.randbytes(chance.choice((0, 1, 7, 63, 64, 200)))
        if chance.random() < 0.6:
            out += datagram_header(len(value)) + value
        else:
            out += varint(chance.getrandbits(chance.choice((2, 6, 14, 30, 62))))
            out += varint(len(value)) + value
    for _ in range(chance.randrange(3)):
        if out:
            out[chance.randrange(len(out))] = chance.getrandbits(8)
    return bytes(out)


def read(octets: bytes, chance: random.Random | None) -> tuple[list[bytes], str]:
    found: list[bytes] = []
    reader, pos = CapsuleReader(), 0
    while pos < len(octets):
        size = chance.randint(1, 40) if chance else len(octets)
        found += map(bytes, reader.feed(memoryview(octets)[pos : pos + size]))
        pos += size
    return found, reader.error


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    chance = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    errors = 0
    for _ in range(runs):
        octets = capsules(chance)
        whole = read(octets, None)
        assert whole == read(octets, chance), octets.hex()
        errors += bool(whole[1])
        path = bytearray(chance.choice(_PATHS))
        path[chance.randrange(len(path))] = chance.getrandbits(8)
        with contextlib.suppress(AddressError):
            parse_target(bytes(path))
    print(f"{runs} runs, {errors} streams refused, nothing raised")


if __name__ == "__main__":
    main()
