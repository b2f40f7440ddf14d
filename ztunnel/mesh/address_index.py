# SPDX-License-Identifier: Apache-2.0
"""Maps each address to its owner when several objects claim the same address.

An address that moves can be claimed by its old and its new owner for a while, because the removal
of the old owner, or even an update of it, can arrive late. A preferred claimant owns the address;
among equals, the latest claim wins. When the owner releases the address, the next claimant
becomes the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class AddressIndex(Generic[T]):
    """Addresses and their claimants.

    `name` identifies a claimant; `preferred` selects claimants that win over others.
    """

    def __init__(self, name: Callable[[T], str], preferred: Callable[[T], bool]) -> None:
        self._name = name
        self._preferred = preferred
        self._owner: dict[str, T] = {}
        self._contested: dict[str, dict[str, T]] = {}  # by name, in order of the first claim

    def owner(self, ip: str) -> T | None:
        """Return the current owner of an address."""
        return self._owner.get(ip)

    def claimants(self, ip: str) -> list[T]:
        """Return all claimants of an address, the owner first, then the latest claim first."""
        owner = self._owner.get(ip)
        if owner is None:
            return []
        others = [each for each in self._contested.get(ip, {}).values() if each is not owner]
        return [owner, *others[::-1]]

    def claim(self, ip: str, claimant: T) -> None:
        """Claim an address. A repeated claim replaces the value and keeps its position."""
        owner = self._owner.get(ip)
        name = self._name(claimant)
        if owner is None or (ip not in self._contested and self._name(owner) == name):
            self._owner[ip] = claimant
            return
        claims = self._contested.setdefault(ip, {self._name(owner): owner})
        claims[name] = claimant
        self._owner[ip] = self._winner(claims.values())

    def release(self, ip: str, name: str) -> None:
        """Release the claim that `name` has on an address, if any."""
        claims = self._contested.get(ip)
        if claims is not None:
            claims.pop(name, None)
            self._owner[ip] = self._winner(claims.values())
            if len(claims) == 1:
                del self._contested[ip]
        elif ip in self._owner and self._name(self._owner[ip]) == name:
            del self._owner[ip]

    def _winner(self, claims: Iterable[T]) -> T:
        latest_first = list(claims)[::-1]
        return next(filter(self._preferred, latest_first), latest_first[0])
