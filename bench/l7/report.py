# SPDX-License-Identifier: Apache-2.0
"""Renders the results: one table for each path, with medians of the rounds. Pure."""

from __future__ import annotations

from bench.comparison.results import BenchResults, divide
from bench.comparison.table import number, render
from bench.l7 import cases

COLUMNS = (
    ("requests/s", cases.RATE),
    ("CPU µs/request", cases.CPU),
    ("p50 µs", cases.P50[cases.MANY]),
    ("p99 µs", cases.P99[cases.MANY]),
    ("p50 µs, 1 conn.", cases.P50[cases.ONE]),
    ("p99 µs, 1 conn.", cases.P99[cases.ONE]),
)


def tables(results: BenchResults) -> str:
    """A Markdown table for each measured path. The ratio is that of requests/s."""
    parts = []
    for path in cases.PATHS:
        lines = [
            _line(results, path.name, name)
            for name in cases.CONTENDERS
            if results.median(cases.RATE, path.name, name) is not None
        ]
        if lines:
            head = (path.name, *(name for name, _ in COLUMNS), f"of {cases.ENVOY_FILTERS}")
            parts.append(render(head, lines))
    return "\n\n".join(parts)


def _line(results: BenchResults, path: str, contender: str) -> tuple[str, ...]:
    values = [results.median(measured, path, contender) for _, measured in COLUMNS]
    base = results.median(cases.RATE, path, cases.ENVOY_FILTERS)
    return (contender, *map(number, values), number(divide(values[0], base)))
