# SPDX-License-Identifier: Apache-2.0
"""The order of matches: Gateway API's rules as properties."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.l7.api.http_route import parse_http_route
from ztunnel.l7.api.request_rules import Match, PathKind, RequestRoute
from ztunnel.l7.objects import l7_object
from ztunnel.l7.routing.precedence import Entry, in_order

paths = st.lists(st.sampled_from("ab"), max_size=3).map(lambda parts: "/" + "/".join(parts))
values = st.fixed_dictionaries({"name": st.sampled_from("xyz"), "value": st.just("1")})
lists = st.lists(values, max_size=3, unique_by=lambda v: v["name"])
matches = st.fixed_dictionaries(
    {
        "path": st.fixed_dictionaries(
            {"type": st.sampled_from(["Exact", "PathPrefix"]), "value": paths}
        )
    },
    optional={"method": st.just("GET"), "headers": lists, "queryParams": lists},
)
routes = st.lists(
    st.tuples(
        st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
        st.lists(st.lists(matches, max_size=3), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


def parse(number: int, created: str, rules: list[list[Any]]) -> RequestRoute:
    metadata = {"name": f"r{number}", "namespace": "n", "creationTimestamp": created}
    spec = {"rules": [{"matches": each} for each in rules]}
    return parse_http_route(l7_object({"kind": "HTTPRoute", "metadata": metadata, "spec": spec}))


def specificity(match: Match) -> tuple[int, ...]:
    """Gateway API's conditions on matches, the first one decides."""
    return (
        int(match.path_kind is PathKind.EXACT),
        len(match.path),
        int(bool(match.method)),
        len(match.headers),
        len(match.query),
    )


def age(entry: Entry) -> tuple[bool, str, str]:
    obj = entry.route.obj
    return (not obj.created, obj.created, obj.name)


@given(routes)
def test_more_specific_matches_precede(found: list[tuple[str, list[list[Any]]]]) -> None:
    entries = in_order(parse(n, created, rules) for n, (created, rules) in enumerate(found))
    for first, second in pairwise(entries):
        assert specificity(first.match) >= specificity(second.match)
        if specificity(first.match) == specificity(second.match):
            assert (age(first), first.number) <= (age(second), second.number)


@given(routes, st.randoms())
def test_order_does_not_depend_on_the_order_of_objects(
    found: list[tuple[str, list[list[Any]]]], rng: Any
) -> None:
    parsed = [parse(n, created, rules) for n, (created, rules) in enumerate(found)]
    shuffled = list(parsed)
    rng.shuffle(shuffled)
    assert in_order(parsed) == in_order(shuffled)
