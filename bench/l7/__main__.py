# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.l7`: compare waypoints with Envoys outside the mesh, in a lab. Needs root.

Prints a table for each path and the targets; writes bench/l7-results.json. BENCH=quick takes two
minutes, with fewer and shorter rounds. Contenders take turns within each round, so that other load
on the machine affects all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.comparison import table, usage
from bench.comparison.results import BenchResults, Measurement
from bench.l7 import cases, report, targets
from bench.l7.testbed import Contender, open_testbed
from bench.l7.wrk import Wrk, WrkError, absent

RESULTS = Path(__file__).parents[1] / "l7-results.json"
ROUNDS = {"full": (5, 2.0), "quick": (2, 1.0)}  # number, seconds of one job
WARM_UP_S = 1.0


def main() -> int:
    names = [path.name for path in cases.PATHS]
    options = options_of("python -m bench.l7", __doc__, names, cases.CONTENDERS)
    count, seconds = ROUNDS["quick" if os.environ.get("BENCH") == "quick" else "full"]
    count, seconds = options.rounds or count, options.seconds or seconds
    if why := "needs root to create a lab; hint: sudo" if os.geteuid() else absent():
        print(f"bench.l7: {why}", file=sys.stderr)
        return 1
    began = time.monotonic()

    def note(text: str) -> None:
        print(f"bench.l7: {time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    results = BenchResults()
    with open_testbed(frozenset(options.contenders), note) as testbed:
        runner = Runner(results, testbed.wrk, note, seconds)
        for path, contenders in testbed.contenders.items():
            if not options.path or path in options.path:
                runner.path(path, contenders, count)
    note("done")
    _report(results)
    return 0


class Runner:
    """Measures contenders and adds the values to `results`."""

    def __init__(
        self, results: BenchResults, wrk: Wrk, note: Callable[[str], None], seconds: float
    ) -> None:
        self._results = results
        self._wrk = wrk
        self._note = note
        self._seconds = seconds

    def path(self, path: str, contenders: list[Contender], count: int) -> None:
        """Measure all contenders of a path, `count` times; another one begins in each round."""
        for contender in contenders:
            self._wrk.run(contender.place, contender.url, cases.MANY, WARM_UP_S)
        for number in range(count):
            self._note(f"{path}, round {number + 1} of {count}")
            first = number % max(1, len(contenders))
            for connections in (cases.ONE, cases.MANY):
                for contender in [*contenders[first:], *contenders[:first]]:
                    self._measure(contender, connections)

    def _measure(self, contender: Contender, connections: int) -> None:
        def add(measured: Measurement, value: float | None) -> None:
            self._results.add(measured, contender.path, contender.name, value)

        pids = contender.processes()
        before = usage.cpu_seconds(pids)
        try:
            done = self._wrk.run(contender.place, contender.url, connections, self._seconds)
        except WrkError as error:
            self._note(f"failed: {contender.name}, {contender.path}: {error}")
            done = None
        spent = usage.cpu_seconds(pids) - before
        add(cases.P50[connections], done.p50 if done else None)
        add(cases.P99[connections], done.p99 if done else None)
        if connections == cases.MANY:
            add(cases.RATE, done.rate if done else None)
            if pids:
                add(cases.CPU, spent / done.requests * 1e6 if done else None)


def _report(results: BenchResults) -> None:
    found = targets.evaluate(results)
    rows = [row.as_json() for row in results.rows()]
    RESULTS.write_text(
        json.dumps({"rows": rows, "targets": [one.as_json() for one in found]}, indent=1) + "\n"
    )
    print(report.tables(results))
    print()
    print(table.target_results(found))


def options_of(
    program: str, description: str | None, paths: Sequence[str], contenders: Sequence[str]
) -> argparse.Namespace:
    """The options of the command line. `program`: for the usage."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--path", action="append", choices=paths, help="one path")
    parser.add_argument(
        "--contenders",
        action="append",
        default=[],
        choices=contenders,
        help="some of the contenders",
    )
    parser.add_argument("--rounds", type=int, help="instead of the usual number")
    parser.add_argument("--seconds", type=float, help="of one job, instead of the usual time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
