# SPDX-License-Identifier: Apache-2.0
"""Rows as tables, JSON and YAML."""

from __future__ import annotations

import json
from typing import Any

import yaml

from ztctl import output
from ztctl.output import Column, Format

COLUMNS = (Column("NAME", "name"), Column("AT", "place.address"), Column("READY", "ready"))
ROWS: list[dict[str, Any]] = [
    {"name": "a", "place": {"address": ["10.0.0.1", "fd00::1"]}, "ready": True, "hidden": 1},
    {"name": "longer", "place": None, "ready": False, "hidden": 2},
]


def test_table_aligns_columns_and_shows_missing_values_as_a_dash() -> None:
    assert output.render_rows(ROWS, COLUMNS, Format.TABLE).splitlines() == [
        "NAME    AT                READY",
        "a       10.0.0.1,fd00::1  yes",
        "longer  -                 no",
    ]


def test_empty_table_has_headings() -> None:
    assert output.render_rows([], COLUMNS, Format.TABLE) == "NAME  AT  READY"


def test_json_and_yaml_contain_whole_rows() -> None:
    assert json.loads(output.render_rows(ROWS, COLUMNS, Format.JSON)) == ROWS
    assert yaml.safe_load(output.render_rows(ROWS, COLUMNS, Format.YAML)) == ROWS


def test_zero_is_not_a_missing_value() -> None:
    assert output.format_cell(0) == "0"


def test_nested_fields_have_dotted_names() -> None:
    value = {"node": "n", "counts": {"pods": 2}, "problems": []}
    assert output.render_fields(value).splitlines() == [
        "node         n",
        "counts.pods  2",
        "problems     -",
    ]


def test_durations_have_their_two_largest_units() -> None:
    spans = [output.format_duration(seconds) for seconds in (0.4, 59, 200, 86399, 90061, -1)]
    assert spans == ["0s", "59s", "3m20s", "23h59m", "1d1h", "0s"]
