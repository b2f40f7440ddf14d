# SPDX-License-Identifier: Apache-2.0
"""What both runs of the suite must fulfil."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from tests.conformance import report
from tests.conformance.suite import Outcome, Results
from tests.support.apiserver.server import ROOT
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.pods import SYSTEM

PAGE = ROOT / "docs/conformance.md"
UPDATE = os.environ.get("CONFORMANCE_UPDATE") == "yes"  # write the results instead of comparing
OUTPUT_LINES = 60  # of a failed test
COMPONENTS = ("agent", "controller", "gateway", "proxy")


def show_failures(results: Results, cluster: Nodes) -> None:
    """Print the logs of failed tests, and what helps if the suite did not run."""
    for run in results.runs.values():
        if run.outcome is Outcome.FAILED:
            print(f"--- {run.name}", *run.output[-OUTPUT_LINES:], sep="\n")
    if not any(run.outcome is Outcome.PASSED for run in results.runs.values()):
        print(results.log[-4000:], cluster.diagnostics())


def counts(results: Results) -> dict[str, tuple[int, int]]:
    """By profile: the numbers of core and of extended tests, whatever their result."""
    return {
        name: (sum(levels.get("core", {}).values()), sum(levels.get("extended", {}).values()))
        for name, levels in report.statistics(results.report).items()
    }


def check_published(results: Results, reasons: Mapping[str, str]) -> None:
    """The page and the report of the documentation are those of this run, or become so."""
    title = results.scope.title
    file = PAGE.with_name(f"conformance-{title}-report.yaml")
    text = report.section(results, reasons)
    if UPDATE:
        PAGE.write_text(report.replaced(PAGE.read_text(), title, text))
        file.write_text(results.report)
    assert report.published(PAGE.read_text(), title) == text, "hint: make conformance"
    published = report.comparable(file.read_text())
    assert published == report.comparable(results.report), "hint: make conformance"


def check_logs(component: str, cluster: Nodes) -> None:
    """No error, no denied request, no traceback."""
    selector = f"app.kubernetes.io/name=ztunnel-{component}"
    words = ("logs", "-n", SYSTEM, "-l", selector, "--tail=-1")
    lines = cluster.server.kubectl(*words).splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert events
    wrong = [event for event in events if event["level"] in {"error", "critical"}]
    assert wrong == []
    denied = [line for line in lines if "forbidden" in line.lower()]
    assert denied == [], "\n".join(denied[:5])
    assert [line for line in lines if not line.startswith("{")] == []  # tracebacks
