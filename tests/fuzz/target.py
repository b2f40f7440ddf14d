# SPDX-License-Identifier: Apache-2.0
"""What a fuzz target is, and how lists of parts are changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Mutate = Callable[[bytes, random.Random], bytes]
T = TypeVar("T")


def unchanged(octets: bytes, _chance: random.Random) -> bytes:
    """For a format that the engine's own mutations serve well."""
    return octets


@dataclass(frozen=True)
class Target:
    """`check` takes any octets and must return: it catches the errors that the parser documents,
    and a promise that is not kept is an AssertionError.

    `mutate` changes an input along its structure; the engine changes it by octets besides.
    `words` are what the format is made of; `max_len` is in octets.
    """

    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    mutate: Mutate = unchanged
    words: Sequence[bytes] = ()
    max_len: int = 4096


def rearranged(parts: Sequence[T], spare: Sequence[T], chance: random.Random) -> list[T]:
    """The parts after one to three changes: one left out, doubled, moved, or new from `spare`."""
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
    """Changes of a text that is parts between separators."""

    def mutate(octets: bytes, chance: random.Random) -> bytes:
        return separator.join(rearranged(octets.split(separator), spare, chance))

    return mutate
