# SPDX-License-Identifier: Apache-2.0
"""The lab that most tests share: the demo, plus a pod for each role. Needs root."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.helpers.harness import named, python_pod
from ztunnel.lab import Lab, demo_manifests

AMBIENT = {"istio.io/dataplane-mode": "ambient"}


@pytest.fixture(autouse=True, scope="session")
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session")
def lab(_root: None) -> Iterator[Lab]:
    """Two nodes: `client` and `near` on node1, `server` and `my-app` on node2, enrolled; namespace
    `plain` has the same pods outside the mesh. Tests restore what they change."""
    made = Lab(f"s{os.getpid() % 100000}")
    objects = [
        named("Namespace", "plain"),
        named("ServiceAccount", "server", "default"),
        python_pod("server", "node2", script="server.py", account="server"),
        python_pod("near", "node1", script="server.py"),
        python_pod("server", "node2", namespace="plain", script="server.py"),
        python_pod("client", "node1", namespace="plain"),
    ]
    try:
        problems = made.up([demo_manifests()])
        problems += made.apply(*objects)
        assert problems == []
        yield made
    finally:
        made.down()
