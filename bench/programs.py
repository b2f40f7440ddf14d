# SPDX-License-Identifier: Apache-2.0
"""The cost of the BPF programs per connection: `python -m bench.programs`. Needs root.

The kernel counts runs and time of the programs while connections are opened one at a time: by a
process that is not enrolled, and between pods on one node with the same-node bypass. Prints
nanoseconds per run, and runs and nanoseconds per connection. Each run includes two clock readings,
about 50 ns.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.comparison.load import Report
from bench.comparison.measurements import SAME
from bench.comparison.results import OURS
from bench.comparison.testbed import Testbed, open_testbed
from ztunnel.datapath.bpf import stats

SECONDS = 2.0


def main() -> int:
    if os.geteuid() != 0:
        print("bench: needs root to create a lab", file=sys.stderr)
        return 1
    with open_testbed(frozenset({OURS}), lambda _: None) as testbed:
        pins = testbed.lab.names.pin_dir("node1")
        for name, work in (("not enrolled", _unenrolled), ("same-node bypass", _bypassed)):
            _measure(name, pins, partial(work, testbed))
    return 0


def _unenrolled(testbed: Testbed) -> Report:
    return testbed.load.run(testbed.attached, "self", SECONDS, seconds=SECONDS)


def _bypassed(testbed: Testbed) -> Report:
    ours = testbed.contenders[SAME][0]
    return testbed.load.run(ours.place, "connect", *ours.address, 1, SECONDS, seconds=SECONDS)


def _measure(name: str, pins: Path, work: Callable[[], Report]) -> None:
    print(f"{name}: p50 {work()['p50']:.1f} µs without counting")
    with _counting():
        before = {one.program: one for one in stats.program_runs(pins)}
        report = work()
        after = stats.program_runs(pins)
    made = report["count"]
    total = 0.0
    for one in after:
        count = one.count - before[one.program].count
        nanoseconds = (one.seconds - before[one.program].seconds) * 1e9
        if count < made / 100:
            continue
        total += nanoseconds / made
        print(
            f"  {one.program:16} {nanoseconds / count:6.0f} ns a run"
            f" {count / made:6.2f} runs {nanoseconds / made:7.0f} ns a connection"
        )
    print(f"  {'all':16} {'':15} {'':11} {total:7.0f} ns a connection, of {report['p50']:.1f} µs")


@contextmanager
def _counting() -> Iterator[None]:
    fd = stats.enable_run_stats()
    try:
        yield
    finally:
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
