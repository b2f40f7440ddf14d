# SPDX-License-Identifier: Apache-2.0
"""Evaluation of targets."""

from __future__ import annotations

from bench.comparison import measurements
from bench.comparison.measurements import CROSS, ENVOY, HAPROXY, NODE
from bench.comparison.results import OURS, BenchResults, Measurement
from bench.comparison.targets import TARGETS, TargetResult, evaluate


def result_of(results: BenchResults, name: str) -> TargetResult:
    (found,) = (one for one in evaluate(results) if one.id == name)
    return found


def run(measured: Measurement, path: str, **medians: float) -> BenchResults:
    results = BenchResults()
    for contender, value in medians.items():
        results.add(measured, path, {"ours": OURS}.get(contender, contender), value)
    return results


def test_bulk_is_compared_with_the_better_peer() -> None:
    results = run(measurements.BULK[1], CROSS, ours=6.0, **{HAPROXY: 4.0, ENVOY: 6.0})
    found = result_of(results, "cross-node bulk, 1 stream")
    assert (found.measured, found.met) == (1.0, False)


def test_bulk_is_compared_with_the_only_peer_measured() -> None:
    results = run(measurements.BULK[8], CROSS, ours=6.0, **{HAPROXY: 4.0})
    found = result_of(results, "cross-node bulk, 8 streams")
    assert (found.measured, found.met) == (1.5, True)


def test_value_equal_to_the_bound_meets_the_target() -> None:
    results = run(measurements.TRIP[1024, "p50"], CROSS, ours=100.0, **{ENVOY: 100.0})
    assert result_of(results, "cross-node round trip 1 KiB, p50").met is True


def test_upper_bound_is_met_by_a_smaller_value() -> None:
    results = run(measurements.BULK_CPU[1], CROSS, ours=0.9, **{ENVOY: 1.0})
    assert result_of(results, "CPU per GB").met is False


def test_memory_target_needs_no_peer() -> None:
    results = run(measurements.AGENT_MEMORY, NODE, ours=70.0)
    assert result_of(results, "agent memory") == TargetResult("agent memory", "≤ 80 MB", 70.0, True)


def test_target_without_measurement_is_neither_met_nor_missed() -> None:
    assert {one.met for one in evaluate(BenchResults())} == {None}


def test_target_names_are_unique() -> None:
    assert len({target.id for target in TARGETS}) == len(TARGETS)
