# SPDX-License-Identifier: Apache-2.0
"""Delays the containers of a new pod until the pod is captured, as Istio's CNI plugin does.

Otherwise a container's first connection could bypass the proxy, in plaintext.
"""

from __future__ import annotations

import time

from ztunnel.lab.admin_client import admin_get
from ztunnel.lab.cluster.pod_fields import is_host_network
from ztunnel.lab.names import LabNames
from ztunnel.lab.objects import Key, Object, Objects, key_of
from ztunnel.lab.runtime import process
from ztunnel.mesh.enrollment import MODE_LABEL, Enrolled, decide

CAPTURE_TIMEOUT_S = 5.0  # the agent captures within one second, even without a proxy
_POLL_INTERVAL_S = 0.02


def dataplane_mode(pod: Object, objects: Objects) -> str:
    """The value of the enrollment label: of the pod, otherwise of its namespace."""
    inherited = _labels(_namespace(pod, objects)).get(MODE_LABEL, "")
    return str(_labels(pod).get(MODE_LABEL, inherited))


def must_be_captured(pod: Object, objects: Objects) -> bool:
    """Whether the mesh captures the pod once it runs and has addresses."""
    decision = decide(
        _labels(_namespace(pod, objects)),
        _labels(pod),
        pod["metadata"].get("annotations") or {},
        host_network=is_host_network(pod),
        phase="Running",
        addresses=("unassigned",),
    )
    return isinstance(decision, Enrolled)


def wait_until_captured(names: LabNames, pod: Object, timeout_s: float = CAPTURE_TIMEOUT_S) -> str:
    """Wait until the node's agent has captured the pod.

    Returns an empty string, or the reason why the pod is not captured.
    """
    node, uid = pod["spec"]["nodeName"], pod["metadata"]["uid"]
    deadline = time.monotonic() + timeout_s
    while process.is_running(names.node_cgroup(node) / "agent"):
        _, response = admin_get(names, node, "/v1/pods")
        by_uid = {entry["pod_uid"]: entry for entry in (response or {}).get("pods", ())}
        entry = by_uid.get(uid, {"state": "", "problem": "the agent has not discovered it"})
        if entry["state"] == "captured":
            return ""
        if time.monotonic() > deadline:
            return f"{key_of(pod)}: not captured by the agent of {node}: {entry['problem']}"
        time.sleep(_POLL_INTERVAL_S)
    return f"{key_of(pod)}: not captured: no agent runs on {node}; hint: ztctl lab up"


def _namespace(pod: Object, objects: Objects) -> Object:
    return objects.get(Key("Namespace", "", pod["metadata"]["namespace"]), {})


def _labels(obj: Object) -> dict[str, str]:
    return obj.get("metadata", {}).get("labels") or {}
