# SPDX-License-Identifier: Apache-2.0
"""Events on pods when the node cannot run the data path, with the permissions of deploy/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiserver.objects import ambient, namespace, pod
from tests.support.apiserver.rbac_fixture import agent_kubeconfig, grant
from tests.support.apiserver.server import ROOT, ApiServer
from tests.support.waiting import wait_until
from ztunnel.agent.cluster import node_failure_events
from ztunnel.agent.config import Options
from ztunnel.datapath import requirements
from ztunnel.kube.client.access import Access

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the agent wants root before all else")
REASON = "Linux 4.19 is too old for sk_lookup; use 5.18 or newer"


@pytest.fixture(scope="module")
def kubeconfig(server: ApiServer) -> Path:
    """Of the agent on node `old`, which runs one enrolled pod and some others."""
    grant(server, "old", "new")
    server.apply(
        ambient("aged"),
        namespace("unmeshed"),
        pod("mine", "aged", "10.21.0.1", on="old"),
        pod("host", "aged", "10.21.0.2", on="old", host_network=True),
        pod("elsewhere", "aged", "10.21.0.3", on="new"),
        pod("plain", "unmeshed", "10.21.0.4", on="old"),
    )
    kubeconfig = agent_kubeconfig(server, "old")
    may = ("auth", "can-i", "list", "pods", "-A")
    wait_until(
        lambda: server.try_kubectl(*may, kubeconfig=kubeconfig).returncode == 0,
        "rights",
        timeout_s=20,
    )
    return kubeconfig


def options_of(kubeconfig: Path) -> Options:
    nowhere = Path("/nonexistent")
    return Options("old", None, nowhere, nowhere, nowhere, None, access=Access(kubeconfig))


def events(server: ApiServer) -> list[dict[str, Any]]:
    found = []
    for space in ("aged", "unmeshed"):
        text = server.kubectl("-n", space, "get", "events", "-o", "json")
        found += json.loads(text)["items"]
    return found


def test_enrolled_pods_of_node_get_one_event(server: ApiServer, kubeconfig: Path) -> None:
    options = options_of(kubeconfig)
    for _ in range(3):  # as restarted by the kubelet
        assert node_failure_events.emit(options, REASON) == 1
    found = [each for each in events(server) if REASON in each["message"]]
    assert [each["involvedObject"]["name"] for each in found] == ["mine"]
    assert found[0]["reason"] == "MeshCaptureFailed"
    assert "node old" in found[0]["message"]
    assert "ztctl check" in found[0]["message"]


def test_unreachable_server_is_not_an_error(kubeconfig: Path, tmp_path: Path) -> None:
    away = tmp_path / "kubeconfig"
    text = kubeconfig.read_text()
    server = next(line for line in text.splitlines() if "server:" in line)
    away.write_text(text.replace(server, "    server: https://127.0.0.1:9"))
    assert node_failure_events.emit(options_of(away), REASON) == 0


def refusal(kubeconfig: Path, directory: Path, *before: str) -> str:
    """Run an agent that cannot start; its last line. `before`: command prefix."""
    words = ["agent", "--node", "old", "--kubeconfig", kubeconfig]
    words += ["--pin-dir", directory / "pins", "--run-dir", directory / "run"]
    words += ["--metrics-port", "0", "--health-port", "0"]
    done = subprocess.run(
        [*before, sys.executable, "-m", "ztunnel.main", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1].removeprefix("Error: ")


def pods_with_event(server: ApiServer, reason: str) -> list[str]:
    found = [each for each in events(server) if reason[:60] in each["message"]]
    return [each["involvedObject"]["name"] for each in found]


@as_root
def test_agent_emits_event_and_exits(server: ApiServer, kubeconfig: Path, tmp_path: Path) -> None:
    """The loader fails because there is no bpffs; nothing is attached."""
    assert pods_with_event(server, refusal(kubeconfig, tmp_path)) == ["mine"]


@as_root
def test_node_without_cgroup2_emits_event(
    server: ApiServer, kubeconfig: Path, tmp_path: Path
) -> None:
    mounts = [str(each.point) for each in requirements.mounts() if each.kind == "cgroup2"]
    without = ("unshare", "--mount", "sh", "-c", f'umount -l {" ".join(mounts)}; exec "$@"', "sh")
    said = refusal(kubeconfig, tmp_path, *without)
    assert "no cgroup v2" in said
    assert pods_with_event(server, said) == ["mine"]
