# SPDX-License-Identifier: Apache-2.0
"""The targets and whether a run met them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.comparison import measurements
from bench.comparison.measurements import CROSS, ENVOY, HAPROXY, NO_MESH, NODE, SAME
from bench.comparison.results import OURS, BenchResults, Measurement


@dataclass(frozen=True)
class TargetResult:
    """A target and the measured value. `met` is None if there is no value."""

    id: str
    target: str
    measured: float | None
    met: bool | None

    def as_json(self) -> dict[str, Any]:
        """The target in bench/results.json."""
        return {
            "id": self.id,
            "target": self.target,
            "measured": self.measured,
            "met": self.met,
        }


@dataclass(frozen=True)
class Target:
    """A bound on a value of the results."""

    id: str
    bound: float
    at_least: bool
    what: str
    measure: Callable[[BenchResults], float | None]

    def evaluate(self, results: BenchResults) -> TargetResult:
        """Whether the run met the target."""
        sign = "≥" if self.at_least else "≤"
        measured = self.measure(results)
        met = None
        if measured is not None:
            met = measured >= self.bound if self.at_least else measured <= self.bound
        return TargetResult(self.id, f"{sign} {self.bound:g} {self.what}", measured, met)


def _beside(
    measured: Measurement, path: str, *peers: str
) -> Callable[[BenchResults], float | None]:
    """The ratio to the best peer that was measured: the lowest, where more is better."""

    def measure(results: BenchResults) -> float | None:
        ratios = [results.ratio(measured, path, peer) for peer in peers]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    return measure


def _absolute(measured: Measurement, path: str) -> Callable[[BenchResults], float | None]:
    return lambda results: results.median(measured, path, OURS)


_BETTER = "x the better of HAProxy and Envoy"

TARGETS = (
    *(
        Target(
            f"cross-node bulk, {count} stream{'s' * (count > 1)}",
            1.2,
            True,
            _BETTER,
            _beside(measurements.BULK[count], CROSS, HAPROXY, ENVOY),
        )
        for count in (1, 8)
    ),
    *(
        Target(
            f"cross-node round trip 1 KiB, {share}",
            1.0,
            False,
            "x Envoy",
            _beside(measurements.TRIP[1024, share], CROSS, ENVOY),
        )
        for share in ("p50", "p99")
    ),
    *(
        Target(
            f"cross-node {measurements.CONNECT[count].name}",
            1.2,
            True,
            "x Envoy",
            _beside(measurements.CONNECT[count], CROSS, ENVOY),
        )
        for count in measurements.PARALLEL
    ),
    Target("CPU per GB", 0.8, False, "x Envoy", _beside(measurements.BULK_CPU[1], CROSS, ENVOY)),
    Target(
        "same-node round trip 1 KiB, p50, bypassed",
        1.05,
        False,
        "x no mesh",
        _beside(measurements.TRIP[1024, "p50"], SAME, NO_MESH),
    ),
    Target("same-node bulk", 0.95, True, "x no mesh", _beside(measurements.BULK[1], SAME, NO_MESH)),
    Target(
        "same-node new connections",
        0.9,
        True,
        "x no mesh",
        _beside(measurements.CONNECT[1], SAME, NO_MESH),
    ),
    Target(
        "not enrolled: connect() and close()",
        1.02,
        False,
        "x without our programs",
        _beside(measurements.UNENROLLED, NODE, measurements.DETACHED),
    ),
    Target(
        "proxy memory, idle", 60, False, "MB a worker", _absolute(measurements.IDLE_MEMORY, CROSS)
    ),
    Target(
        "proxy memory per idle tunnelled connection",
        10,
        False,
        "KiB",
        _absolute(measurements.CONNECTION_MEMORY, CROSS),
    ),
    Target("agent memory", 80, False, "MB", _absolute(measurements.AGENT_MEMORY, NODE)),
)


def evaluate(results: BenchResults, targets: Iterable[Target] = TARGETS) -> list[TargetResult]:
    """All targets with the values of the run."""
    return [target.evaluate(results) for target in targets]


def document(results: BenchResults, target_results: Iterable[TargetResult]) -> dict[str, Any]:
    """The content of bench/results.json."""
    return {
        "rows": [row.as_json() for row in results.rows()],
        "targets": [result.as_json() for result in target_results],
    }
