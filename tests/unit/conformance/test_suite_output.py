# SPDX-License-Identifier: Apache-2.0
"""The output of the conformance suite, as `go test -v` writes it."""

from __future__ import annotations

from tests.conformance import report
from tests.conformance.profiles import GATEWAYS, MESH, Level
from tests.conformance.suite import Outcome, Output, Results

OUTPUT = """\
=== RUN   TestConformance
=== RUN   TestConformance/MeshPorts
    conformance.go:77: 2026-11-30T15:59:34Z: Running MeshPorts, relying on the following \
features: Mesh-standard, HTTPRoute-standard, HTTPRouteParentRefPort-standard
=== RUN   TestConformance/MeshPorts/0_request
=== PAUSE TestConformance/MeshPorts/0_request
=== RUN   TestConformance/MeshBasic
    conformance.go:77: 2026-11-30T15:59:34Z: Running MeshBasic, relying on the following \
features: Mesh-standard
=== RUN   TestConformance/GatewayModifyListeners
    conformance.go:50: Skipping GatewayModifyListeners: suite does not support Gateway
=== NAME  TestConformance/MeshPorts/0_request
    pod.go:80: wanted status code to be one of [200], got 503
--- FAIL: TestConformance (1.00s)
    --- FAIL: TestConformance/MeshPorts (0.90s)
        --- FAIL: TestConformance/MeshPorts/0_request (0.80s)
    --- PASS: TestConformance/MeshBasic (0.10s)
    --- SKIP: TestConformance/GatewayModifyListeners (0.00s)
FAIL
"""


REPORT = """\
date: "2026-11-30T15:59:34Z"
profiles:
- name: MESH-HTTP
  core: {result: success, statistics: {Failed: 0, Passed: 1, Skipped: 0}}
"""


def parse(text: str = OUTPUT) -> Output:
    output = Output()
    for line in text.splitlines():
        output.feed(line)
    return output


def test_outcome_and_duration_are_those_of_the_test_not_of_its_parts() -> None:
    runs = parse().runs
    assert {name: (run.outcome, run.seconds) for name, run in runs.items()} == {
        "MeshPorts": (Outcome.FAILED, 0.9),
        "MeshBasic": (Outcome.PASSED, 0.1),
        "GatewayModifyListeners": (Outcome.SKIPPED, 0.0),
    }


def test_test_without_a_result_line_counts_as_skipped() -> None:
    killed = OUTPUT.partition("--- FAIL")[0]
    assert parse(killed).runs["MeshBasic"].outcome is Outcome.SKIPPED


def test_level_follows_from_the_features() -> None:
    runs = parse().runs
    assert MESH.level(runs["MeshBasic"].features) is Level.CORE
    assert runs["MeshPorts"].features == ("Mesh", "HTTPRoute", "HTTPRouteParentRefPort")
    assert MESH.level(runs["MeshPorts"].features) is Level.NONE
    named = OUTPUT.replace("HTTPRouteParentRefPort", "MeshHTTPRouteRewritePath")
    assert MESH.level(parse(named).runs["MeshPorts"].features) is Level.EXTENDED


def test_log_lines_belong_to_the_test_that_wrote_them() -> None:
    runs = parse().runs
    assert any("got 503" in line for line in runs["MeshPorts"].output)
    assert not any("got 503" in line for line in runs["GatewayModifyListeners"].output)


def test_page_counts_every_test_and_gives_the_reason_of_a_failure() -> None:
    runs = parse().runs
    del runs["GatewayModifyListeners"]
    page = report.section(Results(MESH, runs, REPORT, "", 1.0), {"MeshPorts": "no such port"})
    assert "| MESH-HTTP core | 1 | 0 | 0 |" in page
    assert "| mesh tests of no profile | 0 | 1 | 0 |" in page
    row = "| MeshPorts | no profile | failed | Mesh, HTTPRoute, HTTPRouteParentRefPort |"
    assert f"{row} no such port |" in page


def test_date_and_order_of_profiles_do_not_matter() -> None:
    grpc = "- name: MESH-GRPC\n  core: {statistics: {Failed: 0, Passed: 2, Skipped: 0}}\n"
    head, profiles = REPORT.split("profiles:\n")
    one = f"{head}profiles:\n{profiles}{grpc}"
    other = f"{head.replace('15:59', '16:00')}profiles:\n{grpc}{profiles}"
    assert report.comparable(one) == report.comparable(other)
    pages = {report.section(Results(MESH, {}, text, "", 1.0), {}) for text in (one, other)}
    assert len(pages) == 1


def test_unsupported_feature_is_the_reason_of_a_skipped_test() -> None:
    run = parse().runs["GatewayModifyListeners"]
    assert run.unsupported == "Gateway"
    row = report.row(GATEWAYS, run, {"Gateway": "not built"})
    assert row == "| GatewayModifyListeners | core | not supported | Gateway | not built |"


def test_section_of_one_run_leaves_that_of_the_other() -> None:
    page = report.replaced("", "mesh", "of the mesh\n")
    page = report.replaced(page, "gateway", "of gateways\n")
    assert report.published(page, "mesh") == "of the mesh\n"
    assert report.published(report.replaced(page, "mesh", ""), "gateway") == "of gateways\n"


def test_levels_of_gateway_tests_follow_the_profiles() -> None:
    assert GATEWAYS.level(("Gateway", "TCPRoute", "ReferenceGrant")) is Level.CORE
    assert GATEWAYS.level(("Gateway", "ListenerSet", "TLSRoute")) is Level.EXTENDED
    assert GATEWAYS.level(("Gateway", "HTTPRoute", "TLSRoute")) is Level.NONE
