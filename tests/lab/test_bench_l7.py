# SPDX-License-Identifier: Apache-2.0
"""The benchmark of waypoints on a short run; speed is not evaluated."""

from __future__ import annotations

import pytest

from bench.comparison.results import OURS, BenchResults
from bench.l7 import cases, targets
from bench.l7.__main__ import Runner
from bench.l7.testbed import open_testbed
from bench.l7.wrk import absent


@pytest.mark.skipif(absent() is not None, reason="needs wrk and nginx")
def test_every_contender_of_a_path_is_measured_without_a_failure() -> None:
    results, said = BenchResults(), list[str]()
    path = cases.AT_SERVER.name
    with open_testbed(frozenset(), said.append) as testbed:
        found = testbed.contenders[path]
        assert {each.name for each in found} == set(cases.CONTENDERS)
        Runner(results, testbed.wrk, said.append, seconds=1).path(path, found, count=1)
    assert not [line for line in said if line.startswith("failed")]
    for name in cases.CONTENDERS:
        assert results.median(cases.RATE, path, name)
        assert results.median(cases.P50[cases.ONE], path, name)
    assert results.median(cases.CPU, path, OURS)
    rate = next(t for t in targets.evaluate(results) if t.id == f"requests/s, {path}")
    assert rate.measured
