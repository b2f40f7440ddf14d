# SPDX-License-Identifier: Apache-2.0
"""Finds the parts of a resource that Envoy rejects, so that the other parts still apply. Pure.

One listener has the filter chains of all destinations. If Envoy rejects it, the changed chains are
bisected: Envoy gets the listener with some of them new, and the others as it last accepted them
(absent, if it never did). Each accepted candidate is in use at once.

    rejected --> candidate without changed parts --rejected--> the resource itself is invalid
                          | accepted
                          v
             candidates with halves of the changed parts --> accepted, or invalid single parts
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Set
from dataclasses import replace

from ztunnel.gateway.xds.resources import Resource

Part = tuple[str, bytes]  # name and serialized content


def changed_parts(wanted: Resource, accepted: Resource | None) -> list[str]:
    """The names of parts that differ from those that Envoy has."""
    known: Mapping[str, bytes] = accepted.parts if accepted is not None else {}
    return [name for name, part in wanted.parts.items() if known.get(name) != part]


def without(wanted: Resource, accepted: Resource | None, left_out: Set[str]) -> Resource:
    """The resource with its last accepted version of some parts, or without them."""
    if not left_out:
        return wanted
    known: Mapping[str, bytes] = accepted.parts if accepted is not None else {}
    parts = {}
    for name, part in wanted.parts.items():
        if name not in left_out:
            parts[name] = part
        elif name in known:
            parts[name] = known[name]
    return replace(wanted, parts=parts)


class PartIsolation:
    """The bisection of one version of a resource. Call `accept` or `reject` for each candidate."""

    def __init__(self, origin: str, wanted: Resource, accepted: Resource | None) -> None:
        """`origin`: the version that `wanted` was made of, by leaving out other invalid parts."""
        self.origin = origin
        self.wanted = wanted
        self.invalid: dict[str, str] = {}  # Envoy's message by part
        self._accepted = accepted
        self._open = changed_parts(wanted, accepted)
        self._good: set[str] = set()
        self._groups: deque[list[str]] = deque([[]])

    @property
    def is_done(self) -> bool:
        """Whether there is no further candidate."""
        return not self._groups

    def candidate(self) -> Resource:
        """The resource to send next."""
        included = self._good.union(self._groups[0])
        left_out = {name for name in self._open if name not in included}
        return without(self.wanted, self._accepted, left_out)

    def accept(self) -> None:
        """Envoy accepted the candidate."""
        group = self._groups.popleft()
        if group:
            self._good.update(group)
        else:
            self._split(self._open)

    def reject(self, message: str) -> bool:
        """Envoy rejected the candidate; False if the resource is invalid without any change."""
        group = self._groups.popleft()
        if not group:
            return False
        if len(group) == 1:
            self.invalid[group[0]] = message
        else:
            self._split(group)
        return True

    def _split(self, names: list[str]) -> None:
        middle = (len(names) + 1) // 2
        self._groups.extendleft(half for half in (names[middle:], names[:middle]) if half)
