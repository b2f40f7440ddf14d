# SPDX-License-Identifier: Apache-2.0
"""Access logs of a real Envoy, and the expressions of Telemetry that filter them."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.envoy.telemetry.running import IDENTITY, Waypoint, running, telemetry
from ztunnel.l7.api.istio.cel import CelError, check_expression
from ztunnel.l7.inputs import AccessLogEncoding, Settings
from ztunnel.l7.telemetry.access_log import access_log

LOG_SPEC = {"accessLogging": [{"providers": [{"name": "envoy"}]}]}
JSON = Settings(access_log=True, access_log_encoding=AccessLogEncoding.JSON)


def lines(waypoint: Waypoint, count: int) -> list[str]:
    """The lines of the access log, once there are `count`."""
    deadline = time.monotonic() + 15  # Envoy flushes after ten seconds, or 64 KiB
    while True:
        found = [
            line
            for line in waypoint.envoy.log.read_text().splitlines()
            if line.startswith("{") or '" 2' in line or '" 4' in line or "BLOCKED" in line
        ]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_json_log_has_caller_backend_and_details(tmp_path: Path) -> None:
    with running(tmp_path, settings=JSON) as waypoint:
        waypoint.get("/a?b=1")
        (line,) = lines(waypoint, 1)
        entry = json.loads(line)
        assert entry["path"] == "/a?b=1"
        assert entry["source_principal"] == IDENTITY
        assert entry["source_workload"] == "client"
        assert entry["destination_workload"] == "web-v2"
        assert entry["destination_service"] == "web.shop.svc.cluster.local"
        assert entry["response_code_details"] == "via_upstream"


def test_text_log_is_istios_with_the_peers_at_the_end(tmp_path: Path) -> None:
    with running(tmp_path, telemetry(LOG_SPEC)) as waypoint:
        waypoint.get("/text")
        (line,) = lines(waypoint, 1)
        assert '"GET /text HTTP/1.1" 200 - via_upstream - "-"' in line
        assert f"source_principal={IDENTITY} source_workload=client" in line


def test_log_is_off_unless_enabled(tmp_path: Path) -> None:
    disabled = {"accessLogging": [{"disabled": True}]}
    target = {"targetRefs": [{"kind": "Service", "group": "", "name": "web"}]}
    service = telemetry({**disabled, **target}, "service", "shop")
    with running(tmp_path, telemetry(LOG_SPEC), service) as waypoint:
        assert waypoint.get("/silent").status == 200
        assert "%START_TIME%" not in waypoint.envoy.admin_get("/config_dump")


def _bad_is_404(asked: dict[str, Any]) -> tuple[int, dict[str, str]]:
    return (404 if "bad" in asked["path"] else 200), {}


def test_expression_selects_requests(tmp_path: Path) -> None:
    expression = "response.code >= 400 && request.url_path.startsWith('/logged')"
    spec = {"accessLogging": [{"filter": {"expression": expression}}]}
    with running(tmp_path, telemetry(spec), respond=_bad_is_404, settings=JSON) as waypoint:
        for path in ("/logged/good", "/other/bad", "/logged/bad"):
            waypoint.get(path)
        assert [json.loads(line)["path"] for line in lines(waypoint, 1)] == ["/logged/bad"]


def test_tcp_log_has_one_line_per_connection(tmp_path: Path) -> None:
    with running(tmp_path, protocol="tcp", settings=JSON) as waypoint:
        waypoint.get()
        (line,) = lines(waypoint, 1)
        entry = json.loads(line)
        assert entry["source_principal"] == IDENTITY
        assert entry["bytes_sent"] > 100


@pytest.mark.parametrize(
    "expression",
    [
        "response.code >= 400",
        "!has(response.code) || response.code >= 500",
        "connection.mtls && request.url_path.contains('v1beta3')",
        'request.headers["x-a"] == \'b\' || request.method in ["GET", "PUT"]',
        "size(request.headers) > 3 ? true : false",
        "(response.flags != 0)",
        "request.path.size() > 10 && int('3') == 3",
    ],
)
def test_expressions_of_the_grammar_are_accepted_by_envoy(expression: str, tmp_path: Path) -> None:
    check_expression(expression)
    spec = {"accessLogging": [{"filter": {"expression": expression}}]}
    with running(tmp_path, telemetry(spec), settings=JSON) as waypoint:
        assert waypoint.get().status == 200


@pytest.mark.parametrize(
    "expression",
    [
        "response.code >=",
        "unknown_name == 1",
        "response.code == 1)",
        "request.path.matches('[')",
        "has(response)",
        "-!true",
        "has(1 == 1)",
        "request.path.startsWith()",
        "'open",
        "(" * 40 + "true" + ")" * 40,
        "true || " * 200 + "true",
        "",
    ],
)
def test_other_expressions_are_rejected(expression: str) -> None:
    with pytest.raises(CelError):
        check_expression(expression)


@given(st.text(max_size=60))
def test_check_of_any_text_ends(expression: str) -> None:
    with contextlib.suppress(CelError):
        check_expression(expression)


WORDS = """
request response .code .headers ['a'] [1] has( size( ( ) ! - && || == >= in [ ] , ? : 1 1.5 'x' true
.size() .contains( .startsWith('a') .path null + %
"""
_WORDS = st.sampled_from(WORDS.split())


@settings(max_examples=30, deadline=None, phases=[Phase.generate])
@given(st.lists(st.lists(_WORDS, min_size=1, max_size=12), min_size=300, max_size=300))
def test_envoy_accepts_what_the_check_accepts(envoy_accepts: Any, words: list[list[str]]) -> None:
    """Many expressions at once: one that Envoy rejects fails the whole configuration."""
    accepted = []
    for each in words:
        expression = " ".join(each)
        try:
            check_expression(expression)
        except CelError:
            continue
        accepted.append(expression)
    if accepted:
        envoy_accepts([access_log(AccessLogEncoding.TEXT, (one,)) for one in accepted])
