# SPDX-License-Identifier: Apache-2.0
"""The benchmark of gateways on a short run; speed is not evaluated."""

from __future__ import annotations

import pytest

from bench.comparison.results import OURS, BenchResults
from bench.gateway.cases import CONTENDERS, PATHS
from bench.gateway.testbed import open_testbed
from bench.l7 import cases
from bench.l7.__main__ import Runner
from bench.l7.wrk import absent


@pytest.mark.skipif(absent() is not None, reason="needs wrk and nginx")
def test_every_contender_of_a_path_is_measured_without_a_failure() -> None:
    results, said = BenchResults(), list[str]()
    path = PATHS[-1]  # HTTPS across nodes
    with open_testbed(frozenset(), said.append, [path]) as testbed:
        found = testbed.contenders[path.name]
        assert {each.name for each in found} == set(CONTENDERS)
        Runner(results, testbed.wrk, said.append, seconds=1).path(path.name, found, count=1)
    assert not [line for line in said if line.startswith("failed")]
    for name in CONTENDERS:
        assert results.median(cases.RATE, path.name, name)
        assert results.median(cases.P99[cases.MANY], path.name, name)
    assert results.median(cases.CPU, path.name, OURS)
