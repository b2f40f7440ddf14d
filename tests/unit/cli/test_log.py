# SPDX-License-Identifier: Apache-2.0
"""`ztctl log level` and `ztctl config dump`: requests and output."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.cli.conftest import Agent, Ztctl

LEVELS = {
    "process": "info",
    "access": {"level": "warning", "sample": 1.0},
    "namespaces": {"shop": {"level": "info", "sample": 0.01}},
}


def test_levels_are_listed_by_scope(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers["/v1/log"] = LEVELS
    done = ztctl("--run-dir", str(agent.run_dir), "log", "level")
    assert done.exit_code == 0, done.output
    assert [line.split()[1:] for line in done.output.splitlines()] == [
        ["SCOPE", "LEVEL", "SAMPLE"],
        ["process", "info", "-"],
        ["access", "warning", "1.0"],
        ["access/shop", "info", "0.01"],
    ]
    assert agent.patched == []


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["process=debug"], {"process": "debug"}),
        (["process=default"], {"process": None}),
        (["access=off"], {"access": {"level": "off"}}),
        (["access=default"], {"access": None}),
        (
            ["access=warning", "access/shop=info", "--sample", "0.1"],
            {
                "access": {"level": "warning", "sample": 0.1},
                "namespaces": {"shop": {"level": "info", "sample": 0.1}},
            },
        ),
        (["access/a=default", "access/b=off"], {"namespaces": {"a": None, "b": {"level": "off"}}}),
    ],
)
def test_changes_are_sent_as_one_patch(
    ztctl: Ztctl, agent: Agent, words: list[str], change: dict[str, Any]
) -> None:
    agent.answers["/v1/log"] = LEVELS
    done = ztctl("--run-dir", str(agent.run_dir), "log", "level", *words, "-o", "json")
    assert done.exit_code == 0, done.output
    assert agent.patched == [change]
    assert json.loads(done.output)[2]["scope"] == "access/shop"


@pytest.mark.parametrize(
    "words",
    [
        ["debug"],
        ["process=loud"],
        ["proxy=info"],
        ["access/=info"],
        ["process/shop=info"],
        ["process=info", "--sample", "0.1"],
        ["access=default", "--sample", "0.1"],
        ["access=info", "--sample", "2"],
    ],
)
def test_invalid_settings_are_usage_errors_and_send_nothing(
    ztctl: Ztctl, agent: Agent, words: list[str]
) -> None:
    done = ztctl("--run-dir", str(agent.run_dir), "log", "level", *words)
    assert done.exit_code == 2
    assert agent.patched == []


def test_missing_agent_has_its_own_exit_code(ztctl: Ztctl, agent: Agent) -> None:
    assert ztctl("--run-dir", str(agent.run_dir / "none"), "log", "level").exit_code == 3
    assert ztctl("--run-dir", str(agent.run_dir / "none"), "config", "dump").exit_code == 3


@pytest.mark.parametrize("words", [[], ["-o", "json"]])
def test_config_dump_has_one_entry_per_node(ztctl: Ztctl, agent: Agent, words: list[str]) -> None:
    agent.answers["/config_dump"] = {"status": {"ready": True}, "pods": []}
    done = ztctl("--run-dir", str(agent.run_dir), "config", "dump", *words)
    (dump,) = json.loads(done.output).values()
    assert dump == {"status": {"ready": True}, "pods": []}
