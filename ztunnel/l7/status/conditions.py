# SPDX-License-Identifier: Apache-2.0
"""Kubernetes conditions: equal content, equal condition, so that a status is written once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

Json = dict[str, Any]
MAX_MESSAGE_CHARS = 1024  # of 32,768 that the API allows: a status is read by people


class Condition(msgspec.Struct, frozen=True):
    """A condition without its times. `reason` is CamelCase."""

    type: str
    status: bool
    reason: str
    message: str = ""


def render_conditions(
    conditions: Iterable[Condition], before: object, generation: int, now: str
) -> list[Json]:
    """Conditions as in a status. `before`: those of the current status; `now`: RFC 3339.

    The transition time of a condition changes only with its status.
    """
    known = {each.get("type"): each for each in _mappings(before)}
    return [_rendered(each, known.get(each.type), generation, now) for each in conditions]


def has_conditions(current: object, wanted: object) -> bool:
    """Whether a status has these conditions, whatever else other controllers added."""
    known = _by_type(current)
    return all(known.get(name) == each for name, each in _by_type(wanted).items())


def _rendered(condition: Condition, before: Json | None, generation: int, now: str) -> Json:
    status = "True" if condition.status else "False"
    is_same = before is not None and before.get("status") == status
    since = before.get("lastTransitionTime") if before is not None and is_same else None
    return {
        "type": condition.type,
        "status": status,
        "reason": condition.reason,
        "message": condition.message[:MAX_MESSAGE_CHARS],
        "observedGeneration": generation,
        "lastTransitionTime": since if isinstance(since, str) and since else now,
    }


def _by_type(conditions: object) -> dict[Any, Json]:
    return {str(each.get("type")): each for each in _mappings(conditions)}


def _mappings(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
