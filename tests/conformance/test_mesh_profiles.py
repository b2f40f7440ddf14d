# SPDX-License-Identifier: Apache-2.0
"""The mesh tests of the Gateway API's conformance suite, on real kubelets."""

from __future__ import annotations

from pathlib import Path

import pytest

import ztunnel
from tests.conformance import checks, expected, suite, waypoint
from tests.conformance.profiles import MESH
from tests.conformance.suite import Outcome, Results
from tests.support.apiserver.control_plane import wait_until
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.cluster_setup import TIMEOUT_S
from tests.support.nodes.objects import namespace

SUITE_TIMEOUT_S = 900.0

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
        MESH,
        version=ztunnel.__version__,
        timeout_s=SUITE_TIMEOUT_S,
    )
    checks.show_failures(found, served)
    return found


def test_every_mesh_test_of_the_suite_runs_and_none_is_skipped(results: Results) -> None:
    assert len(results.runs) == expected.MESH_TESTS
    assert checks.counts(results) == expected.MESH_COUNTS
    assert results.with_outcome(Outcome.SKIPPED) == set()


def test_no_mesh_test_fails(results: Results) -> None:
    assert results.with_outcome(Outcome.FAILED) == set()


def test_published_results_are_those_of_this_run(results: Results) -> None:
    checks.check_published(results, {})


@pytest.mark.parametrize("component", checks.COMPONENTS)
def test_component_logs_no_error_and_no_denied_request(
    component: str, results: Results, served: Nodes
) -> None:
    checks.check_logs(component, served)
