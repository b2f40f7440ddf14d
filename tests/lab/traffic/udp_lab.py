# SPDX-License-Identifier: Apache-2.0
"""UDP servers on both nodes of the lab, inside and outside the mesh, and a client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.helpers.harness import APPS, python_pod
from tests.support.waiting import wait_until
from ztunnel.lab import Lab

ECHO, WHOAMI, WHOAMI_DUAL, CONNECTED, COUNT = 7100, 7101, 7102, 7103, 7104


@contextmanager
def udp_servers(lab: Lab) -> Iterator[Lab]:
    """`udp-far` and `udp-far2` on node2, `udp-near` on node1, and another `udp-far` outside the
    mesh."""
    objects = [
        python_pod("udp-far", "node2", script="udp_server.py", account="server"),
        python_pod("udp-far2", "node2", script="udp_server.py", account="server"),
        python_pod("udp-near", "node1", script="udp_server.py"),
        python_pod("udp-far", "node2", namespace="plain", script="udp_server.py"),
    ]
    for each in objects:
        each["spec"]["containers"][0]["ports"] = []  # no TCP ports
    assert lab.apply(*objects) == []
    names = [(each["metadata"]["name"], each["metadata"]["namespace"]) for each in objects]
    for name, namespace in names:
        serving(lab, name, namespace)
    yield lab
    for name, namespace in names:
        lab.delete("Pod", name, namespace)


def serving(lab: Lab, name: str, namespace: str = "default") -> None:
    """Wait until the server in a pod logs that it serves."""
    log = lab.log_paths(name, "app", namespace)[0]
    wait_until(lambda: "serving" in log.read_text(encoding="utf-8"), f"{name} to serve")


def udp_client(
    lab: Lab, what: str, *argv: str | int, pod: str = "client", namespace: str = "default"
) -> dict[str, Any]:
    """Run apps/udp_client.py in a pod; return its JSON output."""
    words = [str(word) for word in (what, *argv)]
    done = lab.exec(
        pod, sys.executable, str(APPS / "udp_client.py"), *words, namespace=namespace, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said
