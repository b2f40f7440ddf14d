# SPDX-License-Identifier: Apache-2.0
"""containerd and CRI-O, with either cgroup driver, under a real kubelet: their pods are found.

Nodes without an API server (tests/node/runtime_nodes): with systemd's driver their first process
is a real
systemd. What finds the pods runs on the node, as an agent does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.node.runtime_nodes.node import Node, apart
from tests.node.runtime_nodes.pods import PODS, name_of
from tests.node.runtime_nodes.runtimes import CGROUPFS, CONTAINERD, CRIO, SYSTEMD
from tests.support.apiserver.control_plane import wait_until
from tests.support.apiserver.server import ROOT, assets
from ztunnel.agent.pods.cri_discovery import dialler
from ztunnel.agent.pods.cri_sandbox import CriError

PATIENCE = 100.0  # seconds for what a kubelet does
NODES = [(runtime, driver) for runtime in (CONTAINERD, CRIO) for driver in (CGROUPFS, SYSTEMD)]
CAPTURED = ["guaranteed", "burstable", "besteffort", "static"]

pytestmark = pytest.mark.timeout(200)


@dataclass(frozen=True)
class Found:
    """By pod's name, where each way leads: an inode, "node", or None; `true` is the app's own."""

    runtime: str
    true: dict[str, int]
    by_cgroup: dict[str, int | str | None]
    by_runtime: dict[str, int | str | None]


@pytest.fixture(
    scope="module", params=NODES, ids=[f"{runtime.name}-{driver}" for runtime, driver in NODES]
)
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Found]:
    """Of a node whose runtime knows all pods, and whose containers run."""
    if not (assets() / "kubelet").exists():
        pytest.skip("no kubelet; unset KUBEBUILDER_ASSETS to build one")
    with apart(tmp_path_factory.mktemp("bare"), *request.param) as node:
        try:
            wait_until(lambda: node.runs() and len(_uids(node)) == len(PODS), timeout_s=PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{node.logs()}") from error
        yield _find(node)


def _uids(node: Node) -> set[str]:
    """Of all pods that the runtime knows; empty while it does not answer."""
    try:
        runtime = dialler(str(node.runtime.socket), node.root)()
        try:
            return set(runtime.sandboxes())
        finally:
            runtime.close()
    except CriError:
        return set()


def _find(node: Node) -> Found:
    uids = sorted(_uids(node))
    words = (
        "env",
        f"PYTHONPATH={ROOT}",
        sys.executable,
        "-m",
        "tests.node.runtime_nodes.discover",
        *uids,
    )
    ways = json.loads(node.run(*words))
    named = {way: {name_of(uid): where for uid, where in ways[way].items()} for way in ways}
    true = {
        name_of(uid): int(one.netns.removeprefix("net:[").removesuffix("]"))
        for uid in uids
        for one in node.processes().values()
        if one.role == "app" and one.is_of(uid)
    }
    return Found(node.runtime.name, true, named["cgroup"], named["runtime"])


@pytest.mark.parametrize("pod", CAPTURED)
def test_cgroup_and_runtime_discovery_find_the_namespace_of_the_app(found: Found, pod: str) -> None:
    assert found.by_cgroup[pod] == found.true[pod]
    assert found.by_runtime[pod] == found.true[pod]


def test_host_network_pod_is_rejected_by_both_discovery_methods(found: Found) -> None:
    assert found.by_cgroup["hostnetwork"] == found.by_runtime["hostnetwork"] == "node"


def test_runtime_reports_a_pod_before_its_containers_start(found: Found) -> None:
    told = found.by_runtime["waiting"]
    assert isinstance(told, int)
    assert told not in found.true.values()
    # CRI-O starts no process for the sandbox, so that the cgroup leads nowhere yet
    assert found.by_cgroup["waiting"] == (None if found.runtime == "crio" else told)
