# SPDX-License-Identifier: Apache-2.0
"""`python -m bench`: compare ztunnel with its peers on the two nodes of a lab. Needs root.

Prints a table of ratios and the targets; writes bench/results.json. BENCH=quick takes two minutes
instead of ten, with fewer and shorter rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.comparison import rounds, table, targets
from bench.comparison.measurements import CROSS, SAME
from bench.comparison.results import BenchResults
from bench.comparison.testbed import Testbed, open_testbed

RESULTS = Path(__file__).with_name("results.json")
KINDS = ("bulk", "trip", "connect", "beside", "hold", "unenrolled")


@dataclass(frozen=True)
class Effort:
    """How many rounds, of what length."""

    rounds: int
    seconds: float  # of one job
    held: int  # connections
    bare_rounds: int  # for the process that is not enrolled: a small difference needs many


EFFORTS = {"full": Effort(5, 0.5, 10_000, 20), "quick": Effort(2, 0.2, 1000, 6)}


def main() -> int:
    options = _options()
    effort = EFFORTS["quick" if os.environ.get("BENCH") == "quick" else "full"]
    effort = Effort(
        options.rounds or effort.rounds,
        options.seconds or effort.seconds,
        effort.held,
        effort.bare_rounds,
    )
    if os.geteuid() != 0:
        print("bench: needs root to create a lab; hint: sudo make bench", file=sys.stderr)
        return 1
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _end_in_order()
    began = time.monotonic()

    def note(text: str) -> None:
        print(f"bench: {time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    results = BenchResults()
    with open_testbed(frozenset(options.contenders), note) as testbed:
        _measure(testbed, results, effort, options, note)
    note("done")
    _report(results)
    return 0


def _end_in_order() -> None:
    """On a signal, stop the lab and the peers. Children that pyroute2 forks exit at once."""
    own = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() != own:
            os._exit(128 + number)
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _measure(
    testbed: Testbed,
    results: BenchResults,
    effort: Effort,
    options: argparse.Namespace,
    note: rounds.Note,
) -> None:
    only = frozenset(options.only)
    play = rounds.Rounds(results, testbed.load, note, effort.rounds, effort.seconds)
    paths = [path for path in (CROSS, SAME) if path in (options.path or (CROSS, SAME))]
    for path in paths:
        play.run(path, testbed.contenders[path], only)
    if not only or "unenrolled" in only:
        note("a process that is not enrolled")
        rounds.unenrolled(testbed, results, effort.bare_rounds, effort.seconds)
    if not only or "hold" in only:
        for path in paths:
            for contender in testbed.contenders[path]:
                rounds.hold(testbed, contender, effort.held, results, note)
    rounds.agents(testbed, results)
    for peer, why in testbed.absent.items():
        results.note_absent(peer, why)


def _report(results: BenchResults) -> None:
    target_results = targets.evaluate(results)
    RESULTS.write_text(json.dumps(targets.document(results, target_results), indent=1) + "\n")
    print(table.ratios(results.rows()))
    print()
    print(table.target_results(target_results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", default=[], choices=KINDS, help="some works")
    parser.add_argument("--path", action="append", choices=(CROSS, SAME), help="one path")
    parser.add_argument(
        "--contenders", action="append", default=[], help="some of ours, Envoy, HAProxy, 'no mesh'"
    )
    parser.add_argument("--rounds", type=int, help="instead of the usual number")
    parser.add_argument("--seconds", type=float, help="of one job, instead of the usual time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
