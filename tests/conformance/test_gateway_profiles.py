# SPDX-License-Identifier: Apache-2.0
"""The gateway tests of the Gateway API's conformance suite, on real kubelets.

The suite sends requests from outside of the cluster to the addresses in the status of Gateways.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import ztunnel
from tests.conformance import checks, expected, suite
from tests.conformance.profiles import GATEWAY_CLASS, GATEWAYS
from tests.conformance.suite import Outcome, Results, Selection
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.load_balancer import POOL, LoadBalancer
from ztunnel.l7.status.features import SUPPORTED_FEATURES

SUITE_TIMEOUT_S = 1500.0
USABLE, UNUSABLE = str(POOL[5]), "192.0.2.5"  # for the test of static addresses
REASONS = expected.UNSUPPORTED | expected.CANNOT_PASS
ONLY = os.environ.get("CONFORMANCE_ONLY", "")  # the name of a test, for development

pytestmark = pytest.mark.timeout(SUITE_TIMEOUT_S + 300)


@pytest.fixture(scope="module")
def served(mesh: Nodes) -> Iterator[Nodes]:
    """The mesh in a cluster with a load balancer."""
    with LoadBalancer(mesh):
        yield mesh


@pytest.fixture(scope="module")
def results(served: Nodes, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Of the gateway tests; the log of a failed one is printed."""
    found = suite.run(
        programs / "conformance.test",
        served.server.admin_kubeconfig,
        tmp_path_factory.mktemp("suite"),
        GATEWAYS,
        version=ztunnel.__version__,
        timeout_s=SUITE_TIMEOUT_S,
        selection=Selection(only=ONLY),
        more=(f"--usable-address={USABLE}", f"--unusable-address={UNUSABLE}"),
    )
    checks.show_failures(found, served)
    return found


def test_every_gateway_test_of_the_suite_is_known(results: Results) -> None:
    assert len(results.runs) == expected.GATEWAY_TESTS
    assert checks.counts(results) == expected.GATEWAY_COUNTS


def test_only_tests_with_a_stated_reason_do_not_run(results: Results) -> None:
    skipped = {
        results.runs[name].unsupported or name for name in results.with_outcome(Outcome.SKIPPED)
    }
    assert skipped == set(expected.UNSUPPORTED)


def test_exactly_the_tests_with_a_stated_reason_fail(results: Results) -> None:
    assert results.with_outcome(Outcome.FAILED) == set(expected.CANNOT_PASS)


def test_class_publishes_the_features_of_the_tests(results: Results, served: Nodes) -> None:
    text = served.server.kubectl("get", "gatewayclass", GATEWAY_CLASS, "-o", "json")
    features = [each["name"] for each in json.loads(text)["status"]["supportedFeatures"]]
    assert features == list(SUPPORTED_FEATURES)
    passed = [results.runs[name] for name in results.with_outcome(Outcome.PASSED)]
    assert {name for run in passed for name in run.features} == set(features)


def test_published_results_are_those_of_this_run(results: Results) -> None:
    checks.check_published(results, REASONS)


@pytest.mark.parametrize("component", checks.COMPONENTS)
def test_component_logs_no_error_and_no_denied_request(
    component: str, results: Results, served: Nodes
) -> None:
    checks.check_logs(component, served)
