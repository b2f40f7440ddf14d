# SPDX-License-Identifier: Apache-2.0
"""List commands and `ztctl status`: the output for responses of the agent."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.conftest import Agent, Ztctl

WORKLOAD = {
    "uid": "Kubernetes//Pod/default/client",
    "name": "client",
    "namespace": "default",
    "node": "node1",
    "addresses": ["10.244.1.2", "fd00:10:244:1::2"],
    "protocol": "HBONE",
    "ready": True,
    "identity": "spiffe://cluster.local/ns/default/sa/default",
}
SERVICE = {
    "namespace": "default",
    "name": "my-app",
    "vips": ["10.96.3.4"],
    "ports": [{"port": 80, "name": "http", "protocol": "TCP"}],
    "endpoints": [{"address": "10.244.2.2", "ready": True}, {"address": "x", "ready": False}],
}
CONNECTION = {
    "id": 1,
    "direction": "outbound",
    "source": {"address": "10.244.1.2:40000", "identity": "spiffe://x/ns/a/sa/b"},
    "destination": {"address": "10.244.2.2:15008", "identity": "spiffe://x/ns/c/sa/d"},
    "hbone_addr": "10.244.2.2:80",
    "sent": 10,
    "received": 0,
    "started": 0.0,
    "worker": 7,
}


def test_workloads_are_listed_as_a_table(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers["/v1/workloads"] = {"workloads": [WORKLOAD]}
    done = ztctl("--run-dir", str(agent.run_dir), "workload", "list")
    heading, row = done.output.splitlines()
    assert heading.split()[:3] == ["NAMESPACE", "WORKLOAD", "NODE"]
    assert row.split() == [
        "default",
        "client",
        "node1",
        "HBONE",
        "10.244.1.2,fd00:10:244:1::2",
        "yes",
        "spiffe://cluster.local/ns/default/sa/default",
        "-",  # the waypoint
        "-",
    ]


def test_json_and_yaml_contain_whole_workloads(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers["/v1/workloads"] = {"workloads": [WORKLOAD]}
    where = ("--run-dir", str(agent.run_dir))
    assert json.loads(ztctl("workload", "list", *where, "-o", "json").output) == [WORKLOAD]
    assert yaml.safe_load(ztctl("workload", "list", *where, "-o", "yaml").output) == [WORKLOAD]


def test_services_have_the_number_of_ready_endpoints(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers["/v1/services"] = {"services": [SERVICE]}
    row = ztctl("--run-dir", str(agent.run_dir), "service", "list").output.splitlines()[1]
    assert row.split() == ["default", "my-app", "10.96.3.4", "80/TCP", "1/2", "-", "-"]


def test_service_list_states_why_a_waypoint_cannot_be_used(ztctl: Ztctl, agent: Agent) -> None:
    error = "waypoint default/wp does not exist"
    row = {**SERVICE, "waypoint": "default/wp", "waypoint_error": error}
    agent.answers["/v1/services"] = {"services": [row]}
    line = ztctl("--run-dir", str(agent.run_dir), "service", "list").output.splitlines()[1]
    assert line.split()[5] == "default/wp"
    assert line.endswith(error)


def test_peer_of_a_connection_depends_on_its_direction(ztctl: Ztctl, agent: Agent) -> None:
    inbound = {**CONNECTION, "direction": "inbound", "started": time.time() - 125}
    agent.answers["/v1/connections"] = {"connections": [CONNECTION, inbound], "unanswered": []}
    where = ("--run-dir", str(agent.run_dir), "--node", "n1")
    outbound, other = ztctl(*where, "connection", "list").output.splitlines()[1:]
    assert outbound.split()[:4] == ["n1", "outbound", "10.244.1.2:40000", "10.244.2.2:80"]
    assert "spiffe://x/ns/c/sa/d" in outbound
    assert "spiffe://x/ns/a/sa/b" in other
    assert other.endswith(("2m5s", "2m6s"))


def test_certificates_have_their_remaining_lifetime(ztctl: Ztctl, agent: Agent) -> None:
    now = time.time()
    agent.answers["/v1/certificates"] = {
        "certificates": [
            {"identity": "spiffe://a", "state": "valid", "not_after": now + 7199, "renewals": 0},
            {"identity": "spiffe://b", "state": "valid", "not_after": now - 1, "renewals": 3},
        ]
    }
    done = ztctl("--run-dir", str(agent.run_dir), "certificate", "list")
    fresh, old = done.output.splitlines()[1:]
    assert "1h59m" in fresh
    assert "expired" in old


def test_status_has_one_line_per_field(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers["/v1/status"] = {"ready": True, "workers": [{"pid": 5}]}
    done = ztctl("--run-dir", str(agent.run_dir), "--node", "n1", "status")
    assert done.output.splitlines()[0].split() == ["node", "n1"]
    assert "ready" in done.output


def test_missing_socket_is_an_error_with_path_and_hint(ztctl: Ztctl, tmp_path: Path) -> None:
    done = ztctl("--run-dir", str(tmp_path), "workload", "list")
    assert done.exit_code == 3
    assert str(tmp_path / "admin.sock") in done.output
    assert "start the agent" in done.output


def test_socket_without_listener_is_an_error(ztctl: Ztctl, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "admin.sock"))
    done = ztctl("--run-dir", str(tmp_path), "status")
    assert done.exit_code == 3
    assert "no process listens there" in done.output


def test_http_error_of_the_agent_is_reported(ztctl: Ztctl, agent: Agent) -> None:
    done = ztctl("--run-dir", str(agent.run_dir), "service", "list")
    assert done.exit_code == 3
    assert "HTTP status 404" in done.output


@pytest.mark.parametrize("noun", ["workload", "service", "pod", "connection", "certificate"])
def test_every_noun_has_a_list_command(ztctl: Ztctl, agent: Agent, noun: str) -> None:
    agent.answers[f"/v1/{noun}s"] = {f"{noun}s": []}
    done = ztctl("--run-dir", str(agent.run_dir), noun, "list")
    assert done.exit_code == 0, done.output
    assert done.output.count("\n") == 1


def test_refused_pods_are_listed_with_the_reason(ztctl: Ztctl, agent: Agent) -> None:
    agent.answers["/v1/pods"] = {
        "pods": [{"workload": "default/client", "state": "captured", "problem": ""}],
        "refused": [{"pod": "Kubernetes//Pod/kube-system/cni", "reason": "host network"}],
    }
    done = ztctl("--run-dir", str(agent.run_dir), "pod", "list", "-o", "json")
    rows = [(row["workload"], row["state"], row["problem"]) for row in json.loads(done.output)]
    assert rows == [
        ("default/client", "captured", ""),
        ("kube-system/cni", "refused", "host network"),
    ]


def test_unresponsive_worker_is_reported_beside_the_rows_of_others(
    ztctl: Ztctl, agent: Agent
) -> None:
    agent.answers["/v1/connections"] = {"connections": [CONNECTION], "unanswered": [77]}
    done = ztctl("--run-dir", str(agent.run_dir), "connection", "list")
    assert done.exit_code == 3
    assert "10.244.2.2:80" in done.output
    assert "worker 77 did not respond" in done.output
