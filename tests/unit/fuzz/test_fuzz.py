# SPDX-License-Identifier: Apache-2.0
"""Every target passes its corpus and a short run of the engine; the harness finds a seeded bug.

For long runs see docs/tasks/fuzz.md.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.fuzz import corpus_files, targets

if platform.machine() != "x86_64":
    pytest.skip("atheris has no wheel for this machine", allow_module_level=True)

from tests.fuzz.__main__ import run
from tests.fuzz.engine import load

RUNS = 2000


@pytest.mark.parametrize("name", targets.NAMES)
def test_corpus_inputs_pass(name: str) -> None:
    target, inputs = load(name), corpus_files.read(name)
    assert inputs, "no corpus"
    assert sum(map(len, inputs)) < 64 * 1024, "a corpus is to stay small"
    for octets in [b"", *target.seeds, *inputs]:
        target.check(octets)


@pytest.mark.parametrize("name", targets.NAMES)
def test_short_run_finds_no_failure(name: str, tmp_path: Path) -> None:
    outcome = run(name, RUNS, 1, tmp_path)
    assert not outcome.finding, outcome.said
    assert outcome.runs >= RUNS
    assert outcome.covered > 10, "nothing was instrumented"


def test_seeded_bug_is_found(tmp_path: Path) -> None:
    outcome = run("tests.unit.fuzz.seeded_bug", 20_000, 1, tmp_path)
    assert "planted" in outcome.said
    (left,) = tmp_path.iterdir()
    assert left.read_bytes().count(b",again") >= 3
    assert outcome.finding.endswith(str(left))
