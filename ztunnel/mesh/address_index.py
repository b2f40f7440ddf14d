# SPDX-License-Identifier: Apache-2.0
"""Who has an address, when several may say that it is theirs.

An address that moved may be claimed by its old and its new owner for a while, as the old one's
removal can come late, or even an update of it. Then a preferred claimant has it, and of several
the one that claimed last; when it gives the address up, the next best has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class AddressIndex(Generic[T]):
    """Addresses to claimants. `name` tells claimants apart, `preferred` those that win."""

    def __init__(self, name: Callable[[T], str], preferred: Callable[[T], bool]) -> None:
        self._name = name
        self._preferred = preferred
        self._holder: dict[str, T] = {}
        self._contested: dict[str, dict[str, T]] = {}  # by name, in order of the first claim

    def holder(self, ip: str) -> T | None:
        """Who has the address now."""
        return self._holder.get(ip)

    def claimants(self, ip: str) -> list[T]:
        """All who claim the address, who has it first."""
        holder = self._holder.get(ip)
        if holder is None:
            return []
        others = [each for each in self._contested.get(ip, {}).values() if each is not holder]
        return [holder, *others[::-1]]

    def claim(self, ip: str, claimant: T) -> None:
        """Claim an address; a repeated claim keeps its place and brings the new value."""
        holder = self._holder.get(ip)
        name = self._name(claimant)
        if holder is None or (ip not in self._contested and self._name(holder) == name):
            self._holder[ip] = claimant
            return
        claims = self._contested.setdefault(ip, {self._name(holder): holder})
        claims[name] = claimant
        self._holder[ip] = self._winner(claims.values())

    def give_up(self, ip: str, name: str) -> None:
        """End a claim, if there is one."""
        claims = self._contested.get(ip)
        if claims is not None:
            claims.pop(name, None)
            self._holder[ip] = self._winner(claims.values())
            if len(claims) == 1:
                del self._contested[ip]
        elif ip in self._holder and self._name(self._holder[ip]) == name:
            del self._holder[ip]

    def _winner(self, claims: Iterable[T]) -> T:
        latest_first = list(claims)[::-1]
        return next(filter(self._preferred, latest_first), latest_first[0])
