# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy`: tables, JSON, and denials explained from the access log."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import yaml

from tests.unit.cli.conftest import Agent, Ztctl
from ztunnel.telemetry.access_log import render_console, render_json

POLICY = {
    "kind": "AuthorizationPolicy",
    "namespace": "shop",
    "name": "only-web",
    "action": "ALLOW",
    "rules": 1,
    "state": "in force",
    "message": "",
    "definition": {
        "namespace": "shop",
        "name": "only-web",
        "selections": [{"namespace": "shop", "labels": {"app": "db"}}],
        "rules": [{"number": 0}],
    },
}
REFUSED = {**POLICY, "name": "bad", "state": "refused", "message": "spec.rules[0].from is []"}
DECISION: dict[str, Any] = {
    "from": {"workload": "shop/x", "address": "10.0.0.1", "node": "n", "identity": "spiffe://a"},
    "to": {"workload": "shop/db", "address": "10.0.0.2", "node": "n", "identity": "", "port": 80},
    "path": "HBONE",
    "allowed": False,
    "cause": "unmatched",
    "reason": "no rule of the ALLOW policies matches: AuthorizationPolicy shop/only-web",
    "policy": "AuthorizationPolicy shop/only-web",
    "rule": "",
    "dry_run": "",
    "mtls": {"mode": "PERMISSIVE", "policy": ""},
    "considered": [
        {
            "policy": "AuthorizationPolicy shop/only-web",
            "action": "ALLOW",
            "dry_run": False,
            "matches": "",
        }
    ],
    "applying": 1,
}
DENIAL: dict[str, object] = {
    "direction": "inbound",
    "src.addr": "10.0.0.1:40000",
    "src.workload": "x",
    "src.namespace": "shop",
    "src.identity": "spiffe://cluster.local/ns/shop/sa/x",
    "dst.addr": "10.0.0.2:80",
    "dst.identity": "spiffe://cluster.local/ns/shop/sa/db",
    "response_flags": "DENY",
    "policy": "AuthorizationPolicy shop/only-web",
    "error": "no rule of the ALLOW policies matches",
}


def path(resource: str, **query: str) -> str:
    return f"{resource}?{urlencode(query)}"


def call(ztctl: Ztctl, agent: Agent, *words: str) -> Any:
    return ztctl("--run-dir", str(agent.run_dir), "policy", *words)


def test_list_has_states_and_messages(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers["/v1/policies"] = {"policies": [POLICY, REFUSED]}
    done = call(ztctl, agent, "list")
    _, good, bad = done.output.splitlines()
    assert good.split()[:4] == ["AuthorizationPolicy", "shop", "only-web", "ALLOW"]
    assert "shop app=db" in good
    assert "refused" in bad
    assert "spec.rules[0].from is []" in bad
    assert json.loads(call(ztctl, agent, "list", "-o", "json").output) == [POLICY, REFUSED]


def test_show_has_workloads_and_rules(ztctl: Ztctl, agent: Agent) -> None:
    shown = {**POLICY, "workloads": ["shop/db"]}
    agent.answers[path("/v1/policy", name="only-web")] = {"policies": [shown]}
    done = call(ztctl, agent, "show", "only-web")
    assert "workloads  shop/db" in done.output
    assert "rules:\n- number: 0" in done.output
    assert yaml.safe_load(call(ztctl, agent, "show", "only-web", "-o", "yaml").output) == [shown]


def test_show_of_unknown_policy_is_an_error(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers[path("/v1/policy", name="x")] = {"error": "no policy 'x'"}
    done = call(ztctl, agent, "show", "x")
    assert done.exit_code == 1
    assert "no policy 'x'" in done.output


def test_test_shows_the_decision_and_exits_with_1_if_denied(ztctl: Ztctl, agent: Agent) -> None:
    query = path("/v1/policy/test", **{"from": "x", "to": "db:80"})
    agent.answers[query] = DECISION
    done = call(ztctl, agent, "test", "--from", "x", "--to", "db:80")
    assert done.exit_code == 1
    assert "decision  DENIED" in done.output
    assert "AuthorizationPolicy shop/only-web" in done.output
    agent.answers[query] = {**DECISION, "allowed": True}
    done = call(ztctl, agent, "test", "--from", "x", "--to", "db:80", "-o", "json")
    assert done.exit_code == 0
    assert json.loads(done.output)["allowed"] is True


def test_test_option_selects_ipv6(ztctl: Ztctl, agent: Agent) -> None:
    query = path("/v1/policy/test", **{"from": "x", "to": "db:80", "family": "6"})
    agent.answers[query] = {**DECISION, "allowed": True}
    assert call(ztctl, agent, "test", "--from", "x", "--to", "db:80", "-6").exit_code == 0


def set_answers(agent: Agent) -> None:
    query = {
        "from": "10.0.0.1",
        "to": "10.0.0.2:80",
        "identity": "spiffe://cluster.local/ns/shop/sa/x",
    }
    agent.answers[path("/v1/policy/test", **query)] = DECISION
    agent.answers[path("/v1/policy", name="shop/only-web")] = {"policies": [POLICY]}


def test_explain_accepts_both_formats_of_the_log(ztctl: Ztctl, agent: Agent) -> None:
    set_answers(agent)
    for render in (render_console, render_json):
        line = render("warning", "denied", DENIAL).decode()
        done = call(ztctl, agent, "explain", line)
        assert done.exit_code == 0, done.output
        assert "AuthorizationPolicy shop/only-web" in done.output
        assert "spiffe://cluster.local/ns/shop/sa/x" in done.output
        assert "principals: [cluster.local/ns/shop/sa/x]" in done.output
        assert "ports: ['80']" in done.output
        data = json.loads(call(ztctl, agent, "explain", line, "-o", "json").output)
        assert data["now"] == DECISION
        assert data["policy_now"] == POLICY


def test_explain_accepts_a_line_of_the_client(ztctl: Ztctl, agent: Agent) -> None:
    set_answers(agent)
    line = {
        **DENIAL,
        "direction": "outbound",
        "dst.addr": "10.0.0.2:15008",
        "dst.hbone_addr": "10.0.0.2:80",
        "error": "the destination's proxy answered 401",
    }
    del line["policy"]
    done = call(ztctl, agent, "explain", render_console("info", "connection", line).decode())
    assert done.exit_code == 0, done.output
    assert "DENIED" in done.output


def test_explain_ignores_lines_without_the_deny_flag(ztctl: Ztctl, agent: Agent) -> None:
    set_answers(agent)
    line = {**DENIAL, "response_flags": "CONNECT", "error": "connection to 10.0.4.1:401 refused"}
    done = call(ztctl, agent, "explain", render_console("info", "connection", line).decode())
    assert done.exit_code == 1
    assert "no denial" in done.output


def test_plaintext_denial_has_a_hint_on_mtls(ztctl: Ztctl, agent: Agent) -> None:
    set_answers(agent)
    (key,) = [key for key in agent.answers if "/test" in key]
    agent.answers[key] = {**DECISION, "cause": "plaintext"}
    done = call(ztctl, agent, "explain", render_console("warning", "denied", DENIAL).decode())
    assert "portLevelMtls" in done.output
    assert "principals" not in done.output


def test_explain_reports_that_the_policy_was_deleted(ztctl: Ztctl, agent: Agent) -> None:
    set_answers(agent)
    agent.answers[path("/v1/policy", name="shop/only-web")] = {"error": "no policy"}
    done = call(ztctl, agent, "explain", render_console("warning", "denied", DENIAL).decode())
    assert "does not exist any more" in done.output


def test_explain_of_other_input_is_an_error(ztctl: Ztctl, agent: Agent) -> None:
    for text in ("", "hello", "a=b"):
        done = call(ztctl, agent, "explain", text)
        assert done.exit_code == 1
        assert "no denial" in done.output
    done = call(ztctl, agent, "explain", "response_flags=DENY")
    assert done.exit_code == 1
    assert "src.addr" in done.output
