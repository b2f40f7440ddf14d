# SPDX-License-Identifier: Apache-2.0
"""`ztctl route`: output for the objects of an agent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import Result

from tests.support.waypoint.world import World
from tests.unit.cli.conftest import Agent, Ztctl

ROUTES = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: default}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - matches: [{headers: [{name: version, value: v2}]}]
    name: by-header
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {value: /old}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
  - backendRefs: [{name: v1, port: 80, weight: 90}, {name: absent, port: 80, weight: 10}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: lost, namespace: default}
spec:
  parentRefs: [{group: "", kind: Service, name: nowhere}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: consumer, namespace: other}
spec:
  parentRefs: [{group: "", kind: Service, name: web, namespace: default}]
  rules:
  - backendRefs: [{name: web, namespace: default, port: 80}]
"""

GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  gatewayClassName: ztunnel
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: "*.example.com"}
  - {name: tcp, port: 90, protocol: TCP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: default}
spec:
  parentRefs: [{name: edge}]
  hostnames: [shop.example.com]
  rules:
  - matches: [{path: {value: /cart}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /away}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example.com}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: refused, namespace: other}
spec: {parentRefs: [{name: edge, namespace: default}]}
"""

Run = Callable[..., Result]


@pytest.fixture
def run(ztctl: Ztctl, agent: Agent) -> Run:
    world = World()
    for name in ("web", "v1", "v2"):
        world.service(name)
    world.service("plain", waypoint="")
    world.service("db", {3306: "tcp"})
    world.pod("app", namespace="other")
    objects = list(yaml.safe_load_all(ROUTES)) + list(yaml.safe_load_all(GATEWAY))
    mesh = world.mesh.state
    agent.answers["/v1/l7"] = {
        "settings": {
            "trust_domain": "cluster.local",
            "root_namespace": "istio-system",
            "cluster_domain": "cluster.local",
        },
        "objects": objects,
    }
    services = [{**msgspec.to_builtins(s), "key": s.key} for s in mesh.services()]
    agent.answers["/v1/services"] = {"services": services}
    workloads = [{**msgspec.to_builtins(w), "identity": w.identity} for w in mesh.workloads()]
    agent.answers["/v1/workloads"] = {"workloads": workloads}
    return lambda *words: ztctl("--run-dir", str(agent.run_dir), "route", *words)


def decision(run: Run, *words: str) -> Any:
    result = run("test", *words, "-o", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_routes_are_listed_with_their_state(run: Run) -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "-o", "json").output)}
    assert rows["split"]["state"] == "BackendNotFound"
    assert "default/absent" in rows["split"]["message"]
    assert rows["split"]["waypoint"] == "default/waypoint"
    assert rows["lost"]["state"] == "NoMatchingParent"
    assert (rows["consumer"]["state"], rows["consumer"]["ports"]) == ("Accepted", [80])


def test_rules_are_shown_in_the_order_of_evaluation(run: Run) -> None:
    rows = json.loads(run("show", "web", "-o", "json").output)
    assert [(r["clients"], r["rule"], r["action"]) for r in rows] == [
        ("other", 0, "web:80=1"),
        ("all others", 1, "redirect"),
        ("all others", "by-header", "v2:80=1"),
        ("all others", 2, "v1:80=90,absent:80=10"),
    ]


def test_prediction_names_rule_and_backends(run: Run) -> None:
    found = decision(run, "web/cart", "-H", "Version: v2")
    assert (found["route"], found["rule_name"]) == ("HTTPRoute default/split", "by-header")
    assert found["backends"] == [{"backend": "default/v2:80", "percent": 100.0, "error": ""}]


def test_prediction_reports_a_missing_backend_with_its_share(run: Run) -> None:
    good, missing = decision(run, "http://default/web:80/x")["backends"]
    assert (good["percent"], good["error"]) == (90.0, "")
    assert missing["percent"] == 10.0
    assert "does not exist" in missing["error"]


def test_prediction_of_a_redirect(run: Run) -> None:
    found = decision(run, "web.default/old/a?b=c", "--method", "post")
    assert (found["status"], found["location"]) == (
        302,
        "http://web.default.svc.cluster.local/new/a?b=c",
    )


def test_consumer_route_applies_to_its_namespace(run: Run) -> None:
    assert decision(run, "web", "--from", "other/app")["route"] == "HTTPRoute other/consumer"


def test_service_without_a_waypoint_has_no_routes(run: Run) -> None:
    assert "uses no waypoint" in decision(run, "plain")["reason"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing",), "service 'nothing' not found"),
        (("web:81",), "no TCP port 81"),
        (("db",), "is tcp"),
        (("web", "--from", "ghost"), "pod 'ghost' not found"),
        (("web", "-H", "nocolon"), "is not a header"),
    ],
)
def test_invalid_question_is_explained(run: Run, words: tuple[str, ...], message: str) -> None:
    result = run("test", *words)
    assert result.exit_code == 1
    assert message in result.output


def test_prediction_as_text(run: Run) -> None:
    text = run("test", "web").output
    assert "HTTPRoute default/split, rule 2" in text
    assert "default/v1:80" in text


def test_routes_of_a_gateway_are_listed(run: Run) -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "-o", "json").output)}
    shop = rows["shop"]
    assert (shop["state"], shop["gateway"], shop["ports"]) == ("Accepted", "default/edge", [80])
    assert shop["parent"] == "Gateway default/edge"
    assert rows["refused"]["state"] == "NotAllowedByListeners"
    assert "namespace other" in rows["refused"]["message"]


def test_rules_of_a_gateway_are_shown_by_host(run: Run) -> None:
    rows = json.loads(run("show", "gateway/edge", "-o", "json").output)
    assert [(r["port"], r["listener"], r["host"], r["action"]) for r in rows] == [
        (80, "http", "shop.example.com", "v1:80=1"),
        (80, "http", "shop.example.com", "redirect"),
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://shop.example.com/cart", {"hostname": "shop.example.com", "status": None}),
        ("http://SHOP.example.com/x", {"hostname": "shop.example.com", "status": 404}),
        ("http://a.example.com/cart", {"hostname": "*.example.com", "status": 404}),
        ("http://example.org/cart", {"listener": "", "status": 404}),
        ("https://shop.example.com/cart", {"listener": "", "status": None}),
        (
            "http://shop.example.com/away/1",
            {"status": 302, "location": "http://new.example.com/away/1"},
        ),
    ],
)
def test_request_to_a_gateway_is_predicted(run: Run, url: str, expected: dict[str, Any]) -> None:
    found = decision(run, url, "--gateway", "default/edge")
    assert expected.items() <= found.items()


def test_gateway_that_does_not_exist_is_an_error(run: Run) -> None:
    result = run("test", "http://a/", "--gateway", "none")
    assert result.exit_code != 0
    assert "no ingress gateway 'none'" in result.output
