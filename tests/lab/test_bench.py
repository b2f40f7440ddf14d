# SPDX-License-Identifier: Apache-2.0
"""The benchmark and its testbed on a short run; speed is not evaluated."""

from __future__ import annotations

import shutil

import pytest

from bench.comparison import measurements, rounds
from bench.comparison.measurements import CROSS, NO_MESH, SAME
from bench.comparison.results import OURS, BenchResults
from bench.comparison.testbed import open_testbed

HELD = 40


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_everything_is_measured_on_both_paths_without_a_failure() -> None:
    results, said = BenchResults(), list[str]()
    with open_testbed(frozenset({OURS, NO_MESH}), said.append) as testbed:
        play = rounds.Rounds(results, testbed.load, said.append, count=1, seconds=0.05)
        for path in (CROSS, SAME):
            assert [one.name for one in testbed.contenders[path]] == [OURS, NO_MESH]
            play.run(path, testbed.contenders[path], frozenset())
            for contender in testbed.contenders[path]:
                rounds.hold(testbed, contender, HELD, results, said.append)
        rounds.unenrolled(testbed, results, 1, 0.05)
        rounds.agents(testbed, results)
    assert not [line for line in said if line.startswith("failed")]
    for path in (CROSS, SAME):
        for work in (
            measurements.BULK[8],
            measurements.TRIP[65536, "p99"],
            measurements.CONNECT[16],
        ):
            for name in (OURS, NO_MESH):
                assert results.median(work, path, name)
    assert results.ratio(measurements.UNENROLLED, measurements.NODE, measurements.DETACHED)
    assert results.median(measurements.AGENT_MEMORY, measurements.NODE, OURS)
    assert results.median(measurements.CONNECT_CPU[1], CROSS, OURS)
    assert results.median(measurements.CONNECT_CPU[1], SAME, OURS) is not None
