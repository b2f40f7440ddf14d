# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.gateway`: compare an ingress gateway with Envoy and nginx. Needs root.

A client outside the cluster sends HTTP and HTTPS requests through the gateway into an ambient pod,
and through proxies outside the mesh to the same server. Prints a table for each path; writes
bench/gateway-results.json. BENCH=quick takes two minutes, with fewer and shorter rounds. Contenders
take turns within each round, so that other load on the machine affects all of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from bench.comparison.results import BenchResults
from bench.gateway import cases, report
from bench.gateway.testbed import open_testbed
from bench.l7.__main__ import ROUNDS, Runner, options_of
from bench.l7.wrk import absent

RESULTS = Path(__file__).parents[1] / "gateway-results.json"


def main() -> int:
    names = [path.name for path in cases.PATHS]
    options = options_of("python -m bench.gateway", __doc__, names, cases.CONTENDERS)
    count, seconds = ROUNDS["quick" if os.environ.get("BENCH") == "quick" else "full"]
    count, seconds = options.rounds or count, options.seconds or seconds
    if why := "needs root to create a lab; hint: sudo" if os.geteuid() else absent():
        print(f"bench.gateway: {why}", file=sys.stderr)
        return 1
    began = time.monotonic()

    def note(text: str) -> None:
        elapsed_s = time.monotonic() - began
        print(f"bench.gateway: {elapsed_s:5.0f} s  {text}", file=sys.stderr, flush=True)

    results = BenchResults()
    paths = [path for path in cases.PATHS if path.name in (options.path or [path.name])]
    with open_testbed(frozenset(options.contenders), note, paths) as testbed:
        runner = Runner(results, testbed.wrk, note, seconds)
        for path, contenders in testbed.contenders.items():
            runner.path(path, contenders, count)
    note("done")
    rows = [row.as_json() for row in results.rows()]
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(report.tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
