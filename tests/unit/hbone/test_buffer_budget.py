# SPDX-License-Identifier: Apache-2.0
"""The memory of a worker is shared fairly between pods."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.hbone.buffer_budget import BufferBudget

LIMIT = 1200


@pytest.mark.parametrize(("greedy", "each"), [(1, 600), (2, 400), (3, 300), (5, 200)])
def test_greedy_pods_leave_room_for_one_more(greedy: int, each: int) -> None:
    budget = BufferBudget(LIMIT)
    shares = [budget.new_share() for _ in range(greedy)]
    for _ in range(LIMIT):
        for share in shares:
            share.take(1)
    assert all(each - 1 <= share.used <= each for share in shares)
    assert budget.limit - budget.used >= each


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-800, 800))))
def test_budget_is_never_exceeded_by_what_is_taken(steps: list[tuple[int, int]]) -> None:
    budget = BufferBudget(LIMIT)
    shares = [budget.new_share() for _ in range(5)]
    for number, n in steps:
        share = shares[number]
        if n < 0:
            share.give_back(min(-n, share.used))
        else:
            before = share.used
            assert share.take(n) == share.used - before <= n
        assert budget.used == sum(each.used for each in shares) <= LIMIT


def test_forced_octets_count_against_the_share() -> None:
    budget = BufferBudget(LIMIT)
    share = budget.new_share()
    share.add(LIMIT)
    assert share.take(1) == 0
    share.give_back(LIMIT)
    assert share.take(LIMIT) == LIMIT // 2
