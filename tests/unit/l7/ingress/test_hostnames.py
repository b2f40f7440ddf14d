# SPDX-License-Identifier: Apache-2.0
"""Hostnames against a reference that matches names one by one."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.l7.ingress.hostnames import (
    ANY,
    covers,
    intersection,
    intersections,
    most_specific,
)

LABELS = ("a", "b", "c")
NAMES = [".".join(labels) for size in (1, 2, 3, 4) for labels in product(LABELS, repeat=size)]

names = st.lists(st.sampled_from(LABELS), min_size=1, max_size=3).map(".".join)
hostnames = st.one_of(st.just(ANY), names, names.map("*.{}".format))


def matches(hostname: str, name: str) -> bool:
    """The reference: Gateway API, Listener.hostname."""
    if hostname == ANY:
        return True
    if hostname.startswith("*."):
        wanted, labels = hostname[2:].split("."), name.split(".")
        return len(labels) > len(wanted) and labels[-len(wanted) :] == wanted
    return hostname == name


def names_of(hostname: str) -> set[str]:
    return {name for name in NAMES if matches(hostname, name)}


@given(hostnames, hostnames)
def test_intersection_matches_what_both_match(one: str, other: str) -> None:
    found = intersection(one, other)
    both = names_of(one) & names_of(other)
    assert both == (set() if found is None else names_of(found))
    assert found == intersection(other, one)


@given(hostnames, hostnames)
def test_pattern_covers_what_it_matches(pattern: str, hostname: str) -> None:
    assert covers(pattern, hostname) == (names_of(hostname) <= names_of(pattern))


@given(st.sets(hostnames, min_size=1), names)
def test_most_specific_hostname_matches_the_fewest_names(found: set[str], name: str) -> None:
    best = most_specific(found, name)
    matching = [each for each in found if matches(each, name)]
    assert (best is None) == (not matching)
    for each in matching:
        assert best is not None
        assert len(names_of(best)) <= len(names_of(each))


@given(hostnames, st.lists(hostnames, max_size=4))
def test_route_attaches_at_the_names_of_listener_and_route(listener: str, route: list[str]) -> None:
    found = intersections(listener, route)
    wanted = names_of(listener)
    if route:
        wanted &= set().union(*map(names_of, route))
    assert set().union(*map(names_of, found)) == wanted
    assert len(set(found)) == len(found)
