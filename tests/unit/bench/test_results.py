# SPDX-License-Identifier: Apache-2.0
"""Medians, ratios and rows of a benchmark run."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from bench.comparison import table
from bench.comparison.results import OURS, BenchResults, Measurement
from bench.comparison.targets import document, evaluate

SPEED = Measurement("speed", "m/s")
positive = st.floats(min_value=1e-3, max_value=1e6)


def results(ours: list[float | None], theirs: list[float | None]) -> BenchResults:
    made = BenchResults()
    for value in ours:
        made.add(SPEED, "road", OURS, value)
    for value in theirs:
        made.add(SPEED, "road", "bicycle", value)
    return made


def test_ratio_is_of_the_medians_and_spread_of_the_rounds() -> None:
    (row,) = results([10.0, 20.0, 60.0], [10.0, 10.0, 20.0]).rows()
    assert (row.ours, row.theirs, row.ratio) == (20.0, 10.0, 2.0)
    assert (row.lowest, row.highest) == (1.0, 3.0)


def test_failed_round_is_left_out_and_the_other_rounds_stay_paired() -> None:
    made = results([10.0, None, 30.0], [10.0, 1.0, 10.0])
    assert made.median(SPEED, "road", OURS) == 20.0
    assert made.spread(SPEED, "road", "bicycle") == (1.0, 3.0)


def test_division_by_zero_has_no_ratio() -> None:
    (row,) = results([1.0], [0.0]).rows()
    assert row.ratio is None
    assert row.lowest is None


def test_absent_peer_has_a_row_with_the_reason() -> None:
    made = results([1.0], [2.0])
    made.note_absent("train", "no rails")
    row = made.rows()[-1]
    assert (row.peer, row.ratio) == ("train", None)
    assert "no rails" in row.work


def test_measurement_without_peers_is_a_row_without_a_peer() -> None:
    (row,) = results([3.0], []).rows()
    assert (row.peer, row.ours, row.theirs, row.ratio) == ("", 3.0, None, None)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=9))
def test_identical_sides_have_ratio_one(pairs: list[tuple[float, float]]) -> None:
    same = [one for one, _ in pairs]
    (row,) = results([*same], [*same]).rows()
    assert (row.ratio, row.lowest, row.highest) == (1.0, 1.0, 1.0)


def test_results_document_has_the_documented_form() -> None:
    made = results([2.0], [1.0])
    made.note_absent("train", "no rails")
    found = json.loads(json.dumps(document(made, evaluate(made))))
    assert set(found) == {"rows", "targets"}
    for row in found["rows"]:
        assert set(row) == {"work", "path", "peer", "unit", "ours", "theirs", "ratio"}
    for target in found["targets"]:
        assert set(target) == {"id", "target", "measured", "met"}


def test_table_has_a_line_for_each_row_and_its_columns_line_up() -> None:
    made = results([1234.5, 1.0], [0.25, 0.5])
    made.note_absent("train", "no rails")
    lines = table.ratios(made.rows()).splitlines()
    assert len(lines) == 2 + len(made.rows())
    assert len({len(line) for line in lines}) == 1


def test_numbers_have_three_digits_or_more_and_no_exponent() -> None:
    shown = [table.number(value) for value in (None, 0.01234, 1.234, 12.34, 123.4, 123456.7)]
    assert shown == ["-", "0.012", "1.23", "12.3", "123", "123,457"]
