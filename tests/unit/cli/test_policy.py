# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy`: tables for people, data for machines, and denials explained from the log."""

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
ANSWER: dict[str, Any] = {
    "from": {"workload": "shop/x", "address": "10.0.0.1", "node": "n", "identity": "spiffe://a"},
    "to": {"workload": "shop/db", "address": "10.0.0.2", "node": "n", "identity": "", "port": 80},
    "path": "HBONE",
    "allowed": False,
    "cause": "no rule of any ALLOW policy matches",
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


def path(what: str, **query: str) -> str:
    return f"{what}?{urlencode(query)}"


def call(ztctl: Ztctl, agent: Agent, *words: str) -> Any:
    return ztctl("--run-dir", str(agent.run_dir), "policy", *words)


def test_list_shows_states_and_reasons(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers["/v1/policies"] = {"policies": [POLICY, REFUSED]}
    done = call(ztctl, agent, "list")
    _, good, bad = done.output.splitlines()
    assert good.split()[:4] == ["AuthorizationPolicy", "shop", "only-web", "ALLOW"]
    assert "shop app=db" in good
    assert "refused" in bad
    assert "spec.rules[0].from is []" in bad
    assert json.loads(call(ztctl, agent, "list", "-o", "json").output) == [POLICY, REFUSED]


def test_show(ztctl: Ztctl, agent: Agent) -> None:
    shown = {**POLICY, "workloads": ["shop/db"]}
    agent.answers[path("/v1/policy", name="only-web")] = {"policies": [shown]}
    done = call(ztctl, agent, "show", "only-web")
    assert "workloads  shop/db" in done.output
    assert "rules:\n- number: 0" in done.output
    assert yaml.safe_load(call(ztctl, agent, "show", "only-web", "-o", "yaml").output) == [shown]


def test_show_of_none(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers[path("/v1/policy", name="x")] = {"error": "no policy 'x'"}
    done = call(ztctl, agent, "show", "x")
    assert done.exit_code == 1
    assert "no policy 'x'" in done.output


def test_test_says_what_decides_and_ends_with_1_when_denied(ztctl: Ztctl, agent: Agent) -> None:
    question = path("/v1/policy/test", **{"from": "x", "to": "db:80"})
    agent.answers[question] = ANSWER
    done = call(ztctl, agent, "test", "--from", "x", "--to", "db:80")
    assert done.exit_code == 1
    assert "decision  DENIED" in done.output
    assert "AuthorizationPolicy shop/only-web" in done.output
    agent.answers[question] = {**ANSWER, "allowed": True}
    done = call(ztctl, agent, "test", "--from", "x", "--to", "db:80", "-o", "json")
    assert done.exit_code == 0
    assert json.loads(done.output)["allowed"] is True


def test_test_by_ipv6(ztctl: Ztctl, agent: Agent) -> None:
    question = path("/v1/policy/test", **{"from": "x", "to": "db:80", "family": "6"})
    agent.answers[question] = {**ANSWER, "allowed": True}
    assert call(ztctl, agent, "test", "--from", "x", "--to", "db:80", "-6").exit_code == 0


def prepared(agent: Agent) -> None:
    question = {
        "from": "10.0.0.1",
        "to": "10.0.0.2:80",
        "identity": "spiffe://cluster.local/ns/shop/sa/x",
    }
    agent.answers[path("/v1/policy/test", **question)] = ANSWER
    agent.answers[path("/v1/policy", name="shop/only-web")] = {"policies": [POLICY]}


def test_explain_reads_both_forms_of_the_log(ztctl: Ztctl, agent: Agent) -> None:
    prepared(agent)
    for render in (render_console, render_json):
        line = render("warning", "denied", DENIAL).decode()
        done = call(ztctl, agent, "explain", line)
        assert done.exit_code == 0, done.output
        assert "AuthorizationPolicy shop/only-web" in done.output
        assert "spiffe://cluster.local/ns/shop/sa/x" in done.output
        assert "principals: [cluster.local/ns/shop/sa/x]" in done.output
        assert "ports: ['80']" in done.output
        told = json.loads(call(ztctl, agent, "explain", line, "-o", "json").output)
        assert told["now"] == ANSWER
        assert told["policy_now"] == POLICY


def test_explain_of_a_clients_own_line(ztctl: Ztctl, agent: Agent) -> None:
    prepared(agent)
    line = {
        **DENIAL,
        "direction": "outbound",
        "dst.addr": "10.0.0.2:15008",
        "dst.hbone_addr": "10.0.0.2:80",
        "error": "the destination's proxy answered 401",
    }
    del line["response_flags"], line["policy"]
    done = call(ztctl, agent, "explain", render_console("info", "connection", line).decode())
    assert done.exit_code == 0, done.output
    assert "DENIED" in done.output


def test_explain_when_the_policy_is_gone(ztctl: Ztctl, agent: Agent) -> None:
    prepared(agent)
    agent.answers[path("/v1/policy", name="shop/only-web")] = {"error": "no policy"}
    done = call(ztctl, agent, "explain", render_console("warning", "denied", DENIAL).decode())
    assert "not there any more" in done.output


def test_explain_of_no_denial(ztctl: Ztctl, agent: Agent) -> None:
    for text in ("", "hello", "a=b"):
        done = call(ztctl, agent, "explain", text)
        assert done.exit_code == 1
        assert "no denial" in done.output
    done = call(ztctl, agent, "explain", "response_flags=DENY")
    assert done.exit_code == 1
    assert "src.addr" in done.output
