# SPDX-License-Identifier: Apache-2.0
"""The predicted decisions are those of the data path."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import kube_objects as objects
from tests.support.policies import Json, peer, policy
from ztunnel.agent.api.policy_simulator import PolicySimulator
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.policy.engine import PolicyEngine

IDENTITY = "spiffe://cluster.local/ns/default/sa/default"


class Agent:
    def __init__(self, *message: Json) -> None:
        self.mirror = ClusterView("cluster.local", "c")
        self.policies = PolicyEngine()
        self.simulator = PolicySimulator(self.mirror, self.policies)
        owner = [{"kind": "ReplicaSet", "name": "web-5d8"}]
        self.say(
            objects.namespace("default", objects.AMBIENT),
            objects.namespace("plain"),
            objects.node("node1", "172.30.0.1"),
            objects.pod(
                "web-5d8-x",
                "10.0.0.1",
                "fd00::1",
                labels={"app": "web", "pod-template-hash": "5d8"},
                owners=owner,
            ),
            objects.pod("client", "10.0.0.2", "fd00::2"),
            objects.pod("stranger", "10.0.0.3", namespace="plain"),
            *message,
        )

    def say(self, *message: Json) -> None:
        for each in message:
            self.mirror.upsert(each)
        self.policies.apply(self.mirror.drain())

    def test(self, source: str, target: str, **more: str) -> dict[str, Any]:
        return self.simulator.test({"from": source, "to": target, **more})


def deny(**source: Any) -> Json:
    return policy([{"from": [{"source": source}]}], "DENY", namespace="default")


def test_enrolled_pods_are_authorized_by_identity() -> None:
    agent = Agent(deny(principals=["cluster.local/ns/default/sa/default"]))
    result = agent.test("client", "web-5d8-x:80")
    assert result["path"] == "HBONE"
    assert result["from"]["identity"] == IDENTITY
    assert result["from"]["address"] == "10.0.0.2"
    assert not result["allowed"]
    assert (result["policy"], result["rule"]) == ("AuthorizationPolicy default/p", "rules[0]")
    assert result["considered"] == [
        {
            "policy": "AuthorizationPolicy default/p",
            "action": "DENY",
            "dry_run": False,
            "matches": "rules[0]",
        }
    ]


def test_source_outside_the_mesh_uses_plaintext() -> None:
    agent = Agent(peer("STRICT", namespace="default"))
    for source in ("plain/stranger", "10.0.0.3", "203.0.113.1"):
        result = agent.test(source, "client:80")
        assert (result["path"], result["allowed"]) == ("plaintext", False)
        assert result["from"]["identity"] == ""
        assert result["mtls"] == {"mode": "STRICT", "policy": "PeerAuthentication default/p"}
    assert agent.test("client", "web-5d8-x:80")["allowed"]


def test_connections_of_the_node_to_its_pods_have_no_policy() -> None:
    agent = Agent(peer("STRICT", namespace="default"), deny(notPrincipals=["*"]))
    result = agent.test("172.30.0.1", "client:80")
    assert (result["path"], result["allowed"]) == ("node", True)


def test_destination_outside_the_mesh_has_no_policy() -> None:
    agent = Agent(policy(namespace="plain"))
    assert agent.test("client", "plain/stranger:80")["allowed"]
    assert agent.test("client", "203.0.113.1:443")["allowed"]


def test_reserved_ports_are_refused() -> None:
    assert not Agent().test("client", "web:15008")["allowed"]


def test_pods_by_owner_address_and_family() -> None:
    agent = Agent()
    assert agent.test("client", "web:80")["to"]["workload"] == "default/web-5d8-x"
    assert agent.test("client", "web:80", family="6")["from"]["address"] == "fd00::2"
    assert agent.test("client", "[fd00::1]:80")["from"]["address"] == "fd00::2"
    assert agent.test("client", "default/web:80")["to"]["address"] == "10.0.0.1"


def test_identity_parameter_overrides() -> None:
    agent = Agent(deny(principals=["*/sa/other"]))
    result = agent.test("client", "web:80", identity="spiffe://cluster.local/ns/x/sa/other")
    assert not result["allowed"]
    assert agent.test("client", "web:80", identity="")["path"] == "plaintext"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("unknown", "web:80", "no pod default/unknown"),
        ("client", "unknown:80", "no pod default/unknown"),
        ("client", "web", "not a port"),
        ("client", "web:http", "not a port"),
        ("client", "web:0", "not a port"),
        ("client", "web:70000", "not a port"),
        ("", "web:80", "no pod"),
        ("client", "", "not a port"),
    ],
)
def test_invalid_queries(source: str, target: str, message: str) -> None:
    assert message in Agent().test(source, target)["error"]


def test_dry_run_decision_is_returned() -> None:
    agent = Agent(policy(namespace="default", annotations={"istio.io/dry-run": "true"}))
    result = agent.test("client", "web:80")
    assert result["allowed"]
    assert "no rule" in result["dry_run"]


def test_policy_rows() -> None:
    agent = Agent(
        policy(namespace="default", name="a"),
        policy([{"from": []}], namespace="default", name="b"),
        policy([{}], "AUDIT", namespace="default", name="c"),
        policy(namespace="default", name="d", annotations={"istio.io/dry-run": "1"}),
        policy([{"from": []}], "DENY", namespace="default", name="e"),
        peer("?", namespace="default", name="f"),
    )
    rows = {row["name"]: row for row in agent.simulator.policies()["policies"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "a": "in force",
        "b": "refused",
        "c": "no effect",
        "d": "dry run",
        "e": "refused",
        "f": "refused",
    }
    assert "allows nothing instead" in rows["b"]["message"]
    assert "denies all instead" in rows["e"]["message"]
    assert "STRICT instead" in rows["f"]["message"]
    assert rows["a"]["action"] == "ALLOW"


def test_policy_lists_target_workloads() -> None:
    agent = Agent(policy(namespace="default", selector={"matchLabels": {"app": "web"}}))
    (result,) = agent.simulator.policy({"name": "p"})["policies"]
    assert result["workloads"] == ["default/web-5d8-x"]
    assert agent.simulator.policy({"name": "default/p"})["policies"] == [result]
    assert "no policy" in agent.simulator.policy({"name": "other/p"})["error"]
