# SPDX-License-Identifier: Apache-2.0
"""Access log lines are parsed to the fields that were written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.telemetry.access_log import render_console, render_json
from ztunnel.telemetry.access_log_parser import LineError, parse

names = st.from_regex(r"[a-z][a-z_]{0,8}(\.[a-z]{1,8})?", fullmatch=True)
fields = st.dictionaries(names, st.text(min_size=1), min_size=1, max_size=5)


@given(fields)
def test_console_lines(fields: dict[str, str]) -> None:
    line = render_console("warning", "denied", dict(fields)).decode()
    assert parse(line) == fields


@given(fields)
def test_json_lines(fields: dict[str, str]) -> None:
    found = parse(render_json("warning", "denied", dict(fields)).decode())
    kept = {key: value for key, value in fields.items() if key not in ("event", "level")}
    assert {key: found[key] for key in kept if key != "timestamp"} == {
        key: value for key, value in kept.items() if key != "timestamp"
    }


@pytest.mark.parametrize("text", ["", "nothing here", "{not json", "{}x"])
def test_malformed_line_is_rejected(text: str) -> None:
    with pytest.raises(LineError):
        parse(text)
