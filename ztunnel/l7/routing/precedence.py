# SPDX-License-Identifier: Apache-2.0
"""The order in which the matches of a port's routes are tried (Gateway API, HTTPRouteRule)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ztunnel.l7.api.request_rules import Match, RequestRoute, Rule


class Entry(NamedTuple):
    """One match of a rule; `number` is its position among the rules of the route."""

    route: RequestRoute
    number: int
    rule: Rule
    match: Match


def in_order(routes: Iterable[RequestRoute]) -> list[Entry]:
    """Return all matches, in the order in which they are tried: the first one decides.

    The most specific match first. Then the oldest route, the first in the alphabet, the first
    rule, and the first match.
    """
    entries = [
        Entry(route, number, rule, match)
        for route in sorted(routes, key=lambda r: r.obj.age_rank)
        for number, rule in enumerate(route.rules)
        for match in rule.matches
    ]
    return sorted(entries, key=_specificity)  # stable


def _specificity(entry: Entry) -> tuple[int, ...]:
    return tuple(-part for part in entry.match.rank)
