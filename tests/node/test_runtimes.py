# SPDX-License-Identifier: Apache-2.0
"""Pod discovery with containerd and CRI-O, with both cgroup drivers, under a real kubelet.

The nodes have no API server (tests/node/runtime_nodes); with the systemd driver their PID 1 is a
real systemd. Discovery runs on the node, as in an agent.
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
from ztunnel.agent.pods.cri_discovery import runtime_dialer
from ztunnel.agent.pods.cri_sandbox import CriError

TIMEOUT_S = 100.0  # seconds for the kubelet
NODES = [(runtime, driver) for runtime in (CONTAINERD, CRIO) for driver in (CGROUPFS, SYSTEMD)]
CAPTURED = ["guaranteed", "burstable", "besteffort", "static"]

pytestmark = pytest.mark.timeout(200)


@dataclass(frozen=True)
class Found:
    """By pod name, the result of each method: an inode, "node", or None; `true`: of the app."""

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
    """A node whose runtime knows all pods, and whose containers run."""
    if not (assets() / "kubelet").exists():
        pytest.skip("no kubelet; unset KUBEBUILDER_ASSETS to build one")
    with apart(tmp_path_factory.mktemp("node"), *request.param) as node:
        try:
            wait_until(lambda: node.runs() and len(_uids(node)) == len(PODS), timeout_s=TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{node.logs()}") from error
        yield _find(node)


def _uids(node: Node) -> set[str]:
    """The UIDs of all pods that the runtime knows; empty while it does not respond."""
    try:
        runtime = runtime_dialer(str(node.runtime.socket), node.root)()
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
    reported = found.by_runtime["waiting"]
    assert isinstance(reported, int)
    assert reported not in found.true.values()
    # CRI-O has no process for the sandbox, so the cgroup leads nowhere yet
    assert found.by_cgroup["waiting"] == (None if found.runtime == "crio" else reported)
