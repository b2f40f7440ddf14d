# SPDX-License-Identifier: Apache-2.0
"""Command line: `scripts/docs generate` and `scripts/docs check`."""

from __future__ import annotations

import argparse
import sys

from scripts.docgen import checks, regions


def main() -> int:
    """Exit status: 0 when everything is current and valid, else 1."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description=__doc__)
    parser.add_argument("action", choices=("generate", "check"))
    action = parser.parse_args().action
    if action == "generate":
        for path in regions.generate():
            print(f"docs: wrote {path}", file=sys.stderr)
        return 0
    problems = [*regions.stale(), *checks.problems()]
    for problem in problems:
        print(f"docs: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
