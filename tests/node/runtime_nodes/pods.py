# SPDX-License-Identifier: Apache-2.0
"""The static pods of a node without an API server, a manifest each.

All but one have a UID like those of an API server; one has none, as in a manual manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.node.runtime_nodes.runtimes import PAUSE

PODS = {  # name to UID
    "guaranteed": "11111111-aaaa-4bbb-8ccc-000000000001",
    "burstable": "22222222-aaaa-4bbb-8ccc-000000000002",
    "besteffort": "33333333-aaaa-4bbb-8ccc-000000000003",
    "hostnetwork": "44444444-aaaa-4bbb-8ccc-000000000004",  # in the network namespace of the node
    "waiting": "55555555-aaaa-4bbb-8ccc-000000000005",  # its container is never created
    "static": "",
}
PAUSED, APP = (
    "2147483647",
    "1000001",
)  # seconds: `sleep` of sandbox and app
_AMOUNTS = {"cpu": "50m", "memory": "32Mi"}
_RESOURCES: dict[str, Any] = {
    "guaranteed": {"requests": _AMOUNTS, "limits": _AMOUNTS},
    "burstable": {"requests": _AMOUNTS},
}


def name_of(uid: str) -> str:
    """The manifest of a pod."""
    return next((name for name, one in PODS.items() if one == uid), "static")


def write(directory: Path) -> None:
    """The manifests of all pods."""
    directory.mkdir()
    for name, uid in PODS.items():
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(_pod(name, uid)))


def _pod(name: str, uid: str) -> dict[str, Any]:
    container = {
        "name": "app",
        "image": "ztunnel.test/absent:1" if name == "waiting" else PAUSE,
        "imagePullPolicy": "Never",
        "command": ["sleep", APP],
        "resources": _RESOURCES.get(name, {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", **({"uid": uid} if uid else {})},
        "spec": {
            "containers": [container],
            "hostNetwork": name == "hostnetwork",
            "terminationGracePeriodSeconds": 0,
        },
    }
