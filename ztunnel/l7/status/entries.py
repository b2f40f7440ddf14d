# SPDX-License-Identifier: Apache-2.0
"""Lists in a status to which several controllers contribute: parents of routes, ancestors of
policies. The lists are atomic, so that the entries of other controllers are written with ours.
"""

from __future__ import annotations

from typing import NamedTuple

from ztunnel.l7.status.conditions import Condition, Json, has_conditions, render_conditions

REF_FIELDS = ("group", "kind", "namespace", "name", "sectionName", "port")


class Entry(NamedTuple):
    """What a status states about one parent or ancestor. `of_ingress`: an ingress gateway, or a
    ListenerSet."""

    ref: Json
    conditions: tuple[Condition, ...]
    of_ingress: bool = False


class Controllers(NamedTuple):
    """The `controllerName` of entries of the mesh, and of those of ingress gateways."""

    mesh: str
    ingress: str

    def of(self, entry: Entry) -> str:
        """The controller of an entry."""
        return self.ingress if entry.of_ingress else self.mesh


class EntryList(NamedTuple):
    """`ref_field`: of an entry. `limit`: number of entries, by the schema."""

    ref_field: str
    limit: int


PARENTS = EntryList("parentRef", 32)
ANCESTORS = EntryList("ancestorRef", 16)


def merge_entries(
    kind: EntryList,
    current: object,
    ours: list[Entry],
    controllers: Controllers,
    *,
    generation: int,
    now: str,
) -> list[Json] | None:
    """Return the entries to write, with those of other controllers; None if they are current."""
    existing = _mappings(current)
    own = {_key(kind, each): each for each in existing if _is_of(each, controllers)}
    others = [each for each in existing if not _is_of(each, controllers)]
    merged = []
    for each in ours[: max(0, kind.limit - len(others))]:
        entry = {kind.ref_field: each.ref, "controllerName": controllers.of(each)}
        before = own.get(_key(kind, entry), {}).get("conditions")
        conditions = render_conditions(each.conditions, before, generation, now)
        merged.append({**entry, "conditions": conditions})
    is_current = len(merged) == len(own) and all(
        _is_current(own.get(_key(kind, each)), each) for each in merged
    )
    return None if is_current else [*others, *merged]


def _key(kind: EntryList, entry: Json) -> tuple[str, ...]:
    ref = entry.get(kind.ref_field)
    fields = ref if isinstance(ref, dict) else {}
    controller = str(entry.get("controllerName"))
    return (controller, *(str(fields.get(name) or "") for name in REF_FIELDS))


def _is_of(entry: Json, controllers: Controllers) -> bool:
    return entry.get("controllerName") in controllers


def _is_current(before: Json | None, wanted: Json) -> bool:
    if before is None:
        return False
    known = before.get("conditions")
    is_same_size = len(_mappings(known)) == len(wanted["conditions"])
    return is_same_size and has_conditions(known, wanted["conditions"])


def _mappings(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
