# SPDX-License-Identifier: Apache-2.0
"""The targets of waypoints and whether a run met them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bench.comparison.results import OURS, BenchResults
from bench.comparison.targets import TargetResult
from bench.l7 import cases

MIN_RATE_RATIO = 0.8  # of the requests/s of an Envoy with the same filters and no mesh
MAX_ADDED_RATIO = 1.5  # what a waypoint's mesh adds to p50, beside what L4 adds


def evaluate(results: BenchResults) -> list[TargetResult]:
    """Two targets for each path."""
    return [target for path in cases.PATHS for target in _of_path(results, path.name)]


def _of_path(results: BenchResults, path: str) -> Iterator[TargetResult]:
    rate = results.ratio(cases.RATE, path, cases.ENVOY_FILTERS)
    yield TargetResult(
        f"requests/s, {path}",
        f"at least {MIN_RATE_RATIO} of {cases.ENVOY_FILTERS}",
        rate,
        None if rate is None else rate >= MIN_RATE_RATIO,
    )
    added = added_ratio(results, path)
    yield TargetResult(
        f"added p50, {path}",
        f"at most {MAX_ADDED_RATIO} of what L4 adds",
        added,
        None if added is None else added <= MAX_ADDED_RATIO,
    )


def added_ratio(results: BenchResults, path: str) -> float | None:
    """What the mesh adds to p50 at one connection with a waypoint, divided by the same without."""
    p50 = cases.P50[cases.ONE]
    ours, envoy, l4, direct = (
        results.median(p50, path, name)
        for name in (OURS, cases.ENVOY_FILTERS, cases.L4, cases.NO_MESH)
    )
    if ours is None or envoy is None or l4 is None or direct is None or l4 <= direct:
        return None
    return (ours - envoy) / (l4 - direct)
