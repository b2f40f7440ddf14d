# SPDX-License-Identifier: Apache-2.0
"""Holding a pod's programs back until the mesh has captured it, as Istio's CNI plugin does.

Otherwise a program's first connection could leave before the redirect is there, in plaintext.
May import every lab module below `lab`.
"""

from __future__ import annotations

import time

from ztunnel.lab import process
from ztunnel.lab.components import admin_get
from ztunnel.lab.names import LabNames
from ztunnel.lab.objects import Key, Object, Objects
from ztunnel.lab.plan import host_network

MODE_LABEL = "istio.io/dataplane-mode"
AMBIENT = "ambient"

_SIDECAR_ANNOTATION = "sidecar.istio.io/status"
_PATIENCE = 5.0  # seconds; the agent captures within one even if no proxy is there
_POLL = 0.02


def mode(pod: Object, objects: Objects) -> str:
    """The enrolment label that counts: the pod's own, else its namespace's."""
    space = objects.get(Key("Namespace", "", pod["metadata"]["namespace"]), {})
    inherited = space.get("metadata", {}).get("labels", {}).get(MODE_LABEL, "")
    return str(pod["metadata"].get("labels", {}).get(MODE_LABEL, inherited))


def is_due(pod: Object, objects: Objects) -> bool:
    """Whether the mesh is to capture the pod."""
    sidecar = _SIDECAR_ANNOTATION in (pod["metadata"].get("annotations") or {})
    return mode(pod, objects) == AMBIENT and not sidecar and not host_network(pod)


def wait_captured(names: LabNames, pod: Object) -> bool:
    """Return when the node's agent has captured the pod; False when it is dead or too slow."""
    node, uid = pod["spec"]["nodeName"], pod["metadata"]["uid"]
    deadline = time.monotonic() + _PATIENCE
    while process.running(names.node_cgroup(node) / "agent"):
        _, answer = admin_get(names, node, "/v1/pods")
        states = {entry["pod_uid"]: entry["state"] for entry in (answer or {}).get("pods", ())}
        if states.get(uid) == "captured":
            return True
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL)
    return False
