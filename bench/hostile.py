# SPDX-License-Identifier: Apache-2.0
"""A hostile tenant attacks a mesh on a real API server while another tenant sends 200 requests/s.

    python bench/hostile.py [--minutes 20] [--seed 1]

The attacker has a namespace of its own, may write every namespaced object that the mesh reads, and
runs pods without capabilities. Needs root and what `scripts/setup test-all` installs. Exits with 1
if a request of the victim failed, its p99 rose by more than 50 ms, or policy was bypassed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tests.lab.hostile.soak import MEBIBYTE, Load, Soak, SoakResult, install_crds  # noqa: E402
from tests.lab.kubernetes.api_lab import ApiLab  # noqa: E402
from tests.support.apiserver.server import ApiServer  # noqa: E402

MAX_ADDED_P99_MS = 50.0


def row(name: str, load: Load) -> str:
    """One line of the table."""
    rate = 1 - len(load.failures) / load.requests
    return (
        f"{name:10} {load.requests:8} requests  success rate {rate:.6f}  "
        f"p50 {load.p50_ms:7.2f} ms  p99 {load.p99_ms:7.2f} ms"
    )


def report(result: SoakResult) -> bool:
    """Print the result; whether the promises were kept."""
    print(row("alone", result.alone))
    print(row("attacked", result.attacked))
    for failure in sorted(set(result.attacked.failures))[:10]:
        print(f"  failure: {failure} ({result.attacked.failures.count(failure)} times)")
    for name, peak in sorted(result.peak_bytes.items()):
        print(f"{name:14} at most {peak / MEBIBYTE:7.1f} MiB resident")
    print(
        "attacks:", ", ".join(f"{count} {name}" for name, count in sorted(result.attacks.items()))
    )
    print(f"denied requests that were answered: {result.answered}")
    added = result.attacked.p99_ms - result.alone.p99_ms
    return not result.attacked.failures and not result.answered and added <= MAX_ADDED_P99_MS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(ApiServer(Path(directory)))
        install_crds(server)
        api = stack.enter_context(ApiLab(f"h{os.getpid() % 100000}", server))
        result = Soak(api, options.seed).run(15.0, options.minutes * 60)
        return 0 if report(result) else 1


if __name__ == "__main__":
    sys.exit(main())
