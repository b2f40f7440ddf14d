# SPDX-License-Identifier: Apache-2.0
"""Short functions to use a lab in tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TypeVar

from ztunnel.datapath.bpf.maps import Maps
from ztunnel.lab import Lab

APPS = Path(__file__).parents[1] / "apps"
T = TypeVar("T")


def python_pod(
    name: str,
    node: str,
    *,
    namespace: str = "default",
    script: str = "",
    account: str = "default",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A pod that runs one of `apps/`, or sleeps."""
    command = [sys.executable, str(APPS / script)] if script else ["sleep", "infinity"]
    ports = [{"containerPort": 7000}] if script else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app": name, **(labels or {})},
            "annotations": annotations or {},
        },
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "serviceAccountName": account,
            "containers": [{"name": "app", "image": "python", "command": command, "ports": ports}],
        },
    }


def named(kind: str, name: str, namespace: str = "", **labels: str) -> dict[str, Any]:
    """A Namespace or ServiceAccount."""
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}


def addresses(lab: Lab, pod: str, namespace: str = "default") -> dict[int, str]:
    """The addresses of a pod by family, 4 and 6."""
    found = lab.pod(pod, namespace)["status"]["podIPs"]
    return {6 if ":" in each["ip"] else 4: each["ip"] for each in found}


def client(
    lab: Lab,
    pod: str,
    *argv: str | int,
    namespace: str = "default",
    timeout: float = 60,
) -> dict[str, Any]:
    """Run apps/client.py in a pod; return its JSON output."""
    words = [str(word) for word in argv]
    done = lab.exec(
        pod, sys.executable, str(APPS / "client.py"), *words, namespace=namespace, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def proxy_log(lab: Lab, node: str) -> str:
    """The complete log of the proxy of a node."""
    return lab.log_paths(node, "proxy", "default")[0].read_text(encoding="utf-8")


def enrolled(lab: Lab, node: str) -> set[str]:
    """The addresses that BPF redirects on a node."""
    maps = Maps(lab.names.pin_dir(node), read_only=True)
    try:
        return {ip for pod in maps.pods() for ip in pod.addresses}
    finally:
        maps.close()
