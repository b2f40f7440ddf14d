# SPDX-License-Identifier: Apache-2.0
"""Selection of access log lines by namespace, result and sampling."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.agent.api.log_level import LogControl
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.ipc.messages import DEFAULT_ACCESS_LINES_PER_S, AccessRule, LogConfig, LogLevel
from ztunnel.telemetry import access_log_filter, log_writer, logs
from ztunnel.telemetry.access_log_filter import is_wanted
from ztunnel.telemetry.log_drop_counters import LogDropCounters, LogDropReason
from ztunnel.telemetry.logs import set_level

Levels = st.sampled_from(LogLevel)


@pytest.mark.parametrize(
    ("level", "orderly", "failed"),
    [
        (LogLevel.DEBUG, True, True),
        (LogLevel.INFO, True, True),
        (LogLevel.WARNING, False, True),
        (LogLevel.ERROR, False, False),
        (LogLevel.OFF, False, False),
    ],
)
def test_level_selects_lines(level: LogLevel, orderly: bool, failed: bool) -> None:
    settings = LogConfig(access=AccessRule(level))
    assert is_wanted(settings, "shop", failed=False) is orderly
    assert is_wanted(settings, "shop", failed=True) is failed


@given(Levels, Levels, st.booleans())
def test_namespace_rule_overrides_general_rule(
    of_all: LogLevel, own: LogLevel, failed: bool
) -> None:
    settings = LogConfig(access=AccessRule(of_all), namespaces={"shop": AccessRule(own)})
    alone = LogConfig(access=AccessRule(own))
    general = LogConfig(access=AccessRule(of_all))
    assert is_wanted(settings, "shop", failed=failed) == is_wanted(alone, "x", failed=failed)
    assert is_wanted(settings, "other", failed=failed) == is_wanted(general, "x", failed=failed)


def test_sampling_applies_to_successful_connections_only() -> None:
    tenth = LogConfig(access=AccessRule(sample=0.1), access_lines_per_s=0)
    written = sum(is_wanted(tenth, "", failed=False) for _ in range(10_000))
    assert 600 < written < 1400
    assert all(is_wanted(tenth, "", failed=True) for _ in range(100))
    none = LogConfig(access=AccessRule(sample=0))
    assert not any(is_wanted(none, "", failed=False) for _ in range(100))


# Changing it


class Workers(SessionRegistry):
    """Records what is sent to all workers."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[object] = []

    def broadcast(self, message: msgspec.Struct) -> None:
        self.sent.append(message)


class Control(LogControl):
    def __init__(self) -> None:
        self.current, self.workers = LogSettings(), Workers()
        super().__init__(self.current, self.workers)

    @property
    def settings(self) -> LogConfig:
        return self.current.current


@pytest.fixture(autouse=True)
def unchanged_level() -> Iterator[None]:
    """The tests change the level of their own process."""
    yield
    set_level(LogLevel.INFO)


def control() -> tuple[Control, list[object]]:
    made = Control()
    return made, made.workers.sent


def say(one: LogControl, **change: object) -> None:
    one.change(json.dumps(change).encode())


def test_only_named_settings_change() -> None:
    one, applied = control()
    say(one, access={"level": "warning"})
    say(one, namespaces={"shop": {"sample": 0.5}})
    say(one, process="debug")
    assert applied[-1] == one.settings
    assert one.view() == {
        "process": "debug",
        "access": {"level": "warning", "sample": 1.0},
        "namespaces": {"shop": {"level": "warning", "sample": 0.5}},  # from the general one
        "access_lines_per_s": 100,
    }
    say(one, namespaces={"shop": None}, access=None, process=None)
    assert one.settings == LogConfig()


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b'{"proces": "info"}',
        b'{"process": "loud"}',
        b'{"access": {"sample": 1.5}}',
        b'{"access": {"sample": -1}}',
        b'{"access": {"level": "info", "more": 1}}',
        json.dumps({"namespaces": {f"n{n}": {"level": "off"} for n in range(1001)}}).encode(),
    ],
)
def test_invalid_request_changes_nothing(wrong: bytes) -> None:
    one, applied = control()
    with pytest.raises(ValueError):
        one.change(wrong)
    assert (one.settings, applied) == (LogConfig(), [])


@given(st.binary(max_size=200))
def test_any_request_body_is_applied_or_rejected(raw: bytes) -> None:
    one, _ = control()
    try:
        one.change(raw)
    except ValueError:
        assert one.settings == LogConfig()
    msgspec.json.encode(one.view())


def test_process_level_applies_to_existing_loggers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = structlog.get_config()
    try:
        logs.configure_logs("json")
        log, access = structlog.get_logger(), logs.access_logger()
        log.info("one")
        logs.set_level("error")
        log.warning("two")
        log.error("three")
        access.info("connection")  # has rules of its own
        logs.set_level("debug")
        log.debug("four")
        logs.set_level("off")
        log.error("five")
    finally:
        logs.set_level("info")
        structlog.configure(**before)
        log_writer.flush()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["one", "three", "connection", "four"]
    assert not any("is_access" in line for line in lines)


# Its limit


def test_limit_applies_to_successful_and_failed_connections_separately(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drops, now = LogDropCounters(), [100.0]
    monkeypatch.setattr(access_log_filter, "log_drops", drops)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limiter = access_log_filter.AccessLogLimiter()
    burst = 5 * access_log_filter.BURST_S
    assert sum(limiter.admits(5, failed=False) for _ in range(burst + 30)) == burst
    assert drops.by_reason[LogDropReason.RATE_LIMIT] == 30
    assert limiter.admits(5, failed=True)
    now[0] += 1
    assert sum(limiter.admits(5, failed=False) for _ in range(30)) == 5
    assert all(limiter.admits(0, failed=False) for _ in range(1000))


def test_default_configuration_limits_lines() -> None:
    assert LogConfig().access_lines_per_s == DEFAULT_ACCESS_LINES_PER_S
    limiter = access_log_filter.AccessLogLimiter()
    admitted = sum(
        limiter.admits(LogConfig().access_lines_per_s, failed=False) for _ in range(100_000)
    )
    assert admitted < 100_000 / 10
