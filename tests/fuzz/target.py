# SPDX-License-Identifier: Apache-2.0
"""The definition of a fuzz target, and mutations of lists of parts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Mutate = Callable[[bytes, random.Random], bytes]
T = TypeVar("T")


def unchanged(octets: bytes, _chance: random.Random) -> bytes:
    """No structure-aware mutation, for formats that the mutations of the engine cover well."""
    return octets


@dataclass(frozen=True)
class Target:
    """`check` accepts any bytes and must return: it catches the documented errors of the parser,
    and asserts its guarantees.

    `mutate` changes an input along its structure; the engine also changes bytes. `words` are
    tokens of the format; `max_len` is in bytes.
    """

    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    mutate: Mutate = unchanged
    words: Sequence[bytes] = ()
    max_len: int = 4096


def rearranged(parts: Sequence[T], spare: Sequence[T], chance: random.Random) -> list[T]:
    """Apply one to three changes: remove, duplicate or move a part, or insert one of `spare`."""
    found = list(parts)
    for _ in range(chance.randint(1, 3)):
        change = chance.randrange(4)
        if found and change == 0:
            del found[chance.randrange(len(found))]
        elif found and change == 1:
            found.insert(chance.randrange(len(found) + 1), chance.choice(found))
        elif found and change == 2:
            found.insert(chance.randrange(len(found)), found.pop(chance.randrange(len(found))))
        else:
            found.insert(chance.randrange(len(found) + 1), chance.choice(spare))
    return found


def separated(separator: bytes, spare: Sequence[bytes]) -> Mutate:
    """Mutates a text that consists of parts between separators."""

    def mutate(octets: bytes, chance: random.Random) -> bytes:
        return separator.join(rearranged(octets.split(separator), spare, chance))

    return mutate
