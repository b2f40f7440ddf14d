# SPDX-License-Identifier: Apache-2.0
"""Renders the results: one table for each path, with medians of the rounds. Pure."""

from __future__ import annotations

from bench.comparison.results import BenchResults, divide
from bench.comparison.table import number, render
from bench.gateway.cases import CONTENDERS, ENVOY, ENVOY_FILTERS, NGINX, PATHS
from bench.l7 import cases
from bench.l7.report import COLUMNS

_BASES = (ENVOY, ENVOY_FILTERS, NGINX)


def tables(results: BenchResults) -> str:
    """A Markdown table for each measured path. The ratios are those of requests/s."""
    parts = []
    for path in PATHS:
        lines = [
            _line(results, path.name, name)
            for name in CONTENDERS
            if results.median(cases.RATE, path.name, name) is not None
        ]
        if lines:
            head = (path.name, *(name for name, _ in COLUMNS), *(f"of {each}" for each in _BASES))
            parts.append(render(head, lines))
    return "\n\n".join(parts)


def _line(results: BenchResults, path: str, contender: str) -> tuple[str, ...]:
    values = [results.median(measured, path, contender) for _, measured in COLUMNS]
    ratios = [divide(values[0], results.median(cases.RATE, path, base)) for base in _BASES]
    return (contender, *map(number, values), *map(number, ratios))
