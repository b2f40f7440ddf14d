# SPDX-License-Identifier: Apache-2.0
"""The bench's stage and works on a lab of its own: short, and nothing is judged by its speed."""

from __future__ import annotations

import shutil

import pytest

from bench import rounds, works
from bench.ledger import OURS, Ledger
from bench.stage import open_stage
from bench.works import CROSS, NO_MESH, SAME

HELD = 40


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_all_works_are_measured_on_both_paths_without_a_failure() -> None:
    ledger, said = Ledger(), list[str]()
    with open_stage(frozenset({OURS, NO_MESH}), said.append) as stage:
        play = rounds.Rounds(ledger, stage.load, said.append, count=1, seconds=0.05)
        for path in (CROSS, SAME):
            assert [one.name for one in stage.contenders[path]] == [OURS, NO_MESH]
            play.run(path, stage.contenders[path], frozenset())
            for contender in stage.contenders[path]:
                rounds.hold(stage, contender, HELD, ledger, said.append)
        rounds.unenrolled(stage, ledger, 1, 0.05)
        rounds.agents(stage, ledger)
    assert not [line for line in said if line.startswith("failed")]
    for path in (CROSS, SAME):
        for work in (works.BULK[8], works.TRIP[65536, "p99"], works.CONNECT[16]):
            for name in (OURS, NO_MESH):
                assert ledger.median(work, path, name)
    assert ledger.ratio(works.UNENROLLED, works.NODE, works.DETACHED)
    assert ledger.median(works.AGENT_MEMORY, works.NODE, OURS)
    assert ledger.median(works.CONNECT_CPU[1], CROSS, OURS)
    assert ledger.median(works.CONNECT_CPU[1], SAME, OURS) is not None
