# SPDX-License-Identifier: Apache-2.0
"""Maps each address to its owner when several objects claim the same address.

An address that moves can be claimed by its old and its new owner for a while, because the removal
of the old owner, or even an update of it, can arrive late. A preferred claimant owns the address;
among equals, the latest claim wins. When the owner releases the address, the next claimant
becomes the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Claims(Generic[T]):
    """The claims on a contested address. A claim without preferred rivals costs O(1)."""

    __slots__ = ("by_name", "preferred")

    def __init__(self) -> None:
        self.by_name: dict[str, T] = {}  # in order of the first claim
        self.preferred: set[str] = set()  # names

    def __len__(self) -> int:
        return len(self.by_name)

    def put(self, name: str, claimant: T, *, preferred: bool) -> None:
        self.by_name[name] = claimant
        (self.preferred.add if preferred else self.preferred.discard)(name)

    def discard(self, name: str) -> None:
        self.by_name.pop(name, None)
        self.preferred.discard(name)

    def winner(self) -> T:
        """Return the latest preferred claimant, or the latest one."""
        for name, claimant in reversed(self.by_name.items()):
            if not self.preferred or name in self.preferred:
                return claimant
        raise LookupError("an address without claims is not contested")


class AddressIndex(Generic[T]):
    """Addresses and their claimants.

    `name` identifies a claimant; `preferred` selects claimants that win over others.
    """

    def __init__(self, name: Callable[[T], str], preferred: Callable[[T], bool]) -> None:
        self._name = name
        self._preferred = preferred
        self._owner: dict[str, T] = {}
        self._contested: dict[str, _Claims[T]] = {}

    def owner(self, ip: str) -> T | None:
        """Return the current owner of an address."""
        return self._owner.get(ip)

    def claimants(self, ip: str) -> Iterator[T]:
        """Yield all claimants of an address, the owner first, then the latest claim first."""
        owner = self._owner.get(ip)
        if owner is None:
            return
        yield owner
        claims = self._contested.get(ip)
        for each in reversed(claims.by_name.values()) if claims is not None else ():
            if each is not owner:
                yield each

    def claim(self, ip: str, claimant: T) -> None:
        """Claim an address. A repeated claim replaces the value and keeps its position."""
        owner = self._owner.get(ip)
        name = self._name(claimant)
        if owner is None or (ip not in self._contested and self._name(owner) == name):
            self._owner[ip] = claimant
            return
        claims = self._contested.get(ip)
        if claims is None:
            claims = self._contested[ip] = _Claims()
            claims.put(self._name(owner), owner, preferred=self._preferred(owner))
        claims.put(name, claimant, preferred=self._preferred(claimant))
        self._owner[ip] = claims.winner()

    def release(self, ip: str, name: str) -> None:
        """Release the claim that `name` has on an address, if any."""
        claims = self._contested.get(ip)
        if claims is not None:
            claims.discard(name)
            self._owner[ip] = claims.winner()
            if len(claims) == 1:
                del self._contested[ip]
        elif ip in self._owner and self._name(self._owner[ip]) == name:
            del self._owner[ip]
