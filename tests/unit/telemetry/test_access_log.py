# SPDX-License-Identifier: Apache-2.0
"""Access log lines have the configured format, and text from others cannot forge them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.telemetry import logs
from ztunnel.telemetry.access_log import AccessLog, configured_renderer, render_console, render_json


@pytest.mark.parametrize("name", logs.LOG_FORMATS)
def test_format_follows_configure_logs(name: str) -> None:
    before = structlog.get_config()
    try:
        logs.configure_logs(name)
        assert configured_renderer() is {"json": render_json, "console": render_console}[name]
    finally:
        structlog.configure(**before)


@pytest.fixture
def bound() -> Iterator[None]:
    with structlog.contextvars.bound_contextvars(node="node1"):
        yield


@given(st.text())
def test_json_line_round_trips_any_text_on_one_line(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    line = render_json("info", "connection", {"error": text})
    assert line.count(b"\n") == 1
    said = json.loads(line)
    assert (said["error"], said["event"], said["level"]) == (text, "connection", "info")


@given(st.text())
def test_console_line_escapes_control_characters_and_forged_fields(text: str) -> None:
    line = render_console("info", "connection", {"error": text}).decode()
    assert line[:-1].isprintable()
    assert line[-1] == "\n"
    value = line[:-1].split(" error=", 1)[1]
    assert value == text or (value[0] == value[-1] and value[0] in "'\"")


@pytest.mark.usefixtures("bound")
def test_lines_are_written_in_order_at_end_of_turn(
    capfd: pytest.CaptureFixture[str],
) -> None:
    calls: list[Callable[[], None]] = []
    log = AccessLog(calls.append, render_json)
    log.write("info", "connection", {"dst": "1", "empty": ""})
    log.write("warning", "refused", {"dst": "2"})
    assert capfd.readouterr().err == ""
    (flush,) = calls
    flush()
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert (first["dst"], first["node"], "empty" in first) == ("1", "node1", False)
    assert (second["dst"], second["level"]) == ("2", "warning")


@pytest.mark.usefixtures("bound")
def test_console_line_has_structlogs_layout(
    capfd: pytest.CaptureFixture[str],
) -> None:
    calls: list[Callable[[], None]] = []
    AccessLog(calls.append, render_console).write(
        "info", "connection", {"bytes_sent": 5, "error": "not there"}
    )
    calls.pop()()
    line = capfd.readouterr().err
    assert " [info     ] connection   " in line
    assert line.endswith(" bytes_sent=5 error='not there' node=node1\n")
