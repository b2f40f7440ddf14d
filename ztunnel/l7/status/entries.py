# SPDX-License-Identifier: Apache-2.0
"""Lists in a status to which several controllers contribute: parents of routes, ancestors of
policies. The lists are atomic, so that the entries of other controllers are written with ours.
"""

from __future__ import annotations

from typing import NamedTuple

from ztunnel.l7.status.conditions import Condition, Json, has_conditions, render_conditions

REF_FIELDS = ("group", "kind", "namespace", "name", "sectionName", "port")


class Entry(NamedTuple):
    """What a status states about one parent or ancestor."""

    ref: Json
    conditions: tuple[Condition, ...]


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
    controller: str,
    *,
    generation: int,
    now: str,
) -> list[Json] | None:
    """Return the entries to write, with those of other controllers; None if they are current."""
    existing = _mappings(current)
    own = {_key(each.get(kind.ref_field)): each for each in existing if _is_of(each, controller)}
    others = [each for each in existing if not _is_of(each, controller)]
    merged = [
        {
            kind.ref_field: ref,
            "controllerName": controller,
            "conditions": render_conditions(
                conditions, own.get(_key(ref), {}).get("conditions"), generation, now
            ),
        }
        for ref, conditions in ours[: max(0, kind.limit - len(others))]
    ]
    is_current = len(merged) == len(own) and all(
        _is_current(own.get(_key(each[kind.ref_field])), each) for each in merged
    )
    return None if is_current else [*others, *merged]


def _key(ref: object) -> tuple[str, ...]:
    fields = ref if isinstance(ref, dict) else {}
    return tuple(str(fields.get(name) or "") for name in REF_FIELDS)


def _is_of(entry: Json, controller: str) -> bool:
    return entry.get("controllerName") == controller


def _is_current(before: Json | None, wanted: Json) -> bool:
    if before is None:
        return False
    known = before.get("conditions")
    is_same_size = len(_mappings(known)) == len(wanted["conditions"])
    return is_same_size and has_conditions(known, wanted["conditions"])


def _mappings(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
