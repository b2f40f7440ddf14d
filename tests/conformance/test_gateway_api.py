# SPDX-License-Identifier: Apache-2.0
"""The mesh tests of the Gateway API's conformance suite, on real kubelets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import ztunnel
from tests.conformance import expected, report, suite, waypoint
from tests.conformance.suite import Outcome, Results
from tests.support.apiserver.control_plane import wait_until
from tests.support.apiserver.server import ROOT
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.cluster_setup import TIMEOUT_S
from tests.support.nodes.objects import namespace
from tests.support.nodes.pods import SYSTEM

SUITE_TIMEOUT_S = 900.0
COMPONENTS = ("agent", "controller", "gateway", "proxy")
PAGE, REPORT = ROOT / "docs/conformance.md", ROOT / "docs/conformance-report.yaml"
UPDATE = os.environ.get("CONFORMANCE_UPDATE") == "yes"  # write them instead of comparing

pytestmark = pytest.mark.timeout(SUITE_TIMEOUT_S + 300)


@pytest.fixture(scope="module")
def served(mesh: Nodes) -> Nodes:
    """The mesh with a waypoint that is programmed and whose pod is Ready."""
    for name in waypoint.SPACES:
        mesh.server.apply(namespace(name, waypoint.LABELS))
    mesh.server.apply(waypoint.gateway(waypoint.NAME, waypoint.MESH))
    words = ("wait", "-n", waypoint.MESH, f"gateway/{waypoint.NAME}", "--for=condition=Programmed")
    wait_until(
        lambda: mesh.server.try_kubectl(*words, "--timeout=1s").returncode == 0,
        "the waypoint is programmed",
        timeout_s=TIMEOUT_S,
    )
    return mesh


@pytest.fixture(scope="module")
def results(served: Nodes, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Of all mesh tests; the log of a failed one is printed."""
    found = suite.run(
        programs / "conformance.test",
        served.server.admin_kubeconfig,
        tmp_path_factory.mktemp("suite"),
        namespace_labels=waypoint.LABELS,
        version=ztunnel.__version__,
        timeout_s=SUITE_TIMEOUT_S,
    )
    for run in found.runs.values():
        if run.outcome is Outcome.FAILED:
            print(f"--- {run.name}", *run.output[-40:], sep="\n")
    if not found.runs:
        print(found.log[-4000:], served.diagnostics())
    return found


def test_every_mesh_test_of_the_suite_runs_and_none_is_skipped(results: Results) -> None:
    assert set(results.runs) == expected.ALL
    assert results.with_outcome(Outcome.SKIPPED) == set()


def test_exactly_the_tests_with_a_stated_reason_fail(results: Results) -> None:
    assert results.with_outcome(Outcome.FAILED) == set(expected.CANNOT_PASS)


def test_levels_are_those_of_the_profiles(results: Results) -> None:
    named = {
        suite.Level.CORE: expected.CORE,
        suite.Level.EXTENDED: expected.EXTENDED,
        suite.Level.NONE: expected.NO_PROFILE,
    }
    found = {
        level: frozenset(run.name for run in results.runs.values() if run.level is level)
        for level in suite.Level
    }
    assert found == named


def test_published_results_are_those_of_this_run(results: Results) -> None:
    page = report.page(results, expected.CANNOT_PASS)
    if UPDATE:
        PAGE.write_text(page)
        REPORT.write_text(results.report)
    assert PAGE.read_text() == page, "hint: make conformance"
    published = report.comparable(REPORT.read_text())
    assert published == report.comparable(results.report), "hint: make conformance"


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_logs_no_error_and_no_denied_request(
    component: str, results: Results, served: Nodes
) -> None:
    selector = f"app.kubernetes.io/name=ztunnel-{component}"
    words = ("logs", "-n", SYSTEM, "-l", selector, "--tail=-1")
    lines = served.server.kubectl(*words).splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert events
    wrong = [event for event in events if event["level"] in {"error", "critical"}]
    assert wrong == []
    assert [line for line in lines if "forbidden" in line.lower()] == []
    assert [line for line in lines if not line.startswith("{")] == []  # tracebacks
