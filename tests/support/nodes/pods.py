# SPDX-License-Identifier: Apache-2.0
"""State of the pods of the cluster, and requests between them."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.objects import asking

MARK = "ambient.istio.io/redirection"
SYSTEM = "ztunnel-system"


def pod(cluster: Nodes, space: str, name: str) -> dict[str, Any]:
    """The pod in the API server."""
    words = ("get", "pod", name, "-n", space, "-o", "json")
    found: dict[str, Any] = json.loads(cluster.server.kubectl(*words))
    return found


def is_running(cluster: Nodes, space: str, name: str) -> bool:
    """Whether its containers run."""
    return bool(pod(cluster, space, name)["status"].get("phase") == "Running")


def is_ready(cluster: Nodes, space: str, name: str) -> bool:
    """Whether its probes have succeeded."""
    conditions = pod(cluster, space, name)["status"].get("conditions", [])
    return {one["type"]: one["status"] for one in conditions}.get("Ready") == "True"


def is_captured(cluster: Nodes, space: str, name: str) -> bool:
    """Whether it is Ready and annotated as captured."""
    annotations = pod(cluster, space, name)["metadata"].get("annotations", {})
    return annotations.get(MARK) == "enabled" and is_ready(cluster, space, name)


def address_of(cluster: Nodes, space: str, name: str) -> str:
    """Its IP address."""
    return str(pod(cluster, space, name)["status"]["podIP"])


def run_in(cluster: Nodes, space: str, name: str, *argv: str) -> str:
    """The output of a command in a pod."""
    return cluster.server.kubectl("exec", "-n", space, name, "--", *argv).strip()


def ask(cluster: Nodes, space: str, name: str, host: str, *, udp: bool = False) -> str:
    """The answer of a server to a client; the text of the error if there is none."""
    return run_in(cluster, space, name, *asking(host, udp=udp))


def connections(cluster: Nodes, identity: str) -> list[dict[str, Any]]:
    """The lines `connection` of all proxies that contain an identity."""
    words = ("logs", "-n", SYSTEM, "-l", "app.kubernetes.io/name=ztunnel-proxy", "--tail=-1")
    lines = cluster.server.kubectl(*words).splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in events if line["event"] == "connection" and identity in str(line)]


@contextmanager
def requests(cluster: Nodes, space: str, name: str, host: str) -> Iterator[list[str]]:
    """A client that sends requests, each on its own connection: the answers."""
    words = ("exec", "-i", "-n", space, name, "--", *asking(host, -1))
    login = f"--kubeconfig={cluster.server.admin_kubeconfig}"
    process = subprocess.Popen(
        [cluster.server.binaries / "kubectl", login, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    answers: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.append(line.strip())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield answers
        assert process.poll() is None, "the loop ended"
    finally:
        process.kill()
        process.wait()
        reader.join(10)
