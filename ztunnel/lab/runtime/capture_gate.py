# SPDX-License-Identifier: Apache-2.0
"""Holding a pod's programs back until the mesh has captured it, as Istio's CNI plugin does.

Otherwise a program's first connection could leave before the redirect is there, in plaintext.
"""

from __future__ import annotations

import time

from ztunnel.lab.cluster.scheduler import host_network
from ztunnel.lab.components import admin_get
from ztunnel.lab.names import LabNames
from ztunnel.lab.objects import Key, Object, Objects, key_of
from ztunnel.lab.runtime import process
from ztunnel.mesh.enrollment import MODE_LABEL, Enrolled, decide

PATIENCE = 5.0  # seconds; the agent captures within one even if no proxy is there
_POLL = 0.02


def mode(pod: Object, objects: Objects) -> str:
    """The enrolment label that counts: the pod's own, else its namespace's."""
    inherited = _labels(objects.get(_namespace(pod), {})).get(MODE_LABEL, "")
    return str(_labels(pod).get(MODE_LABEL, inherited))


def is_due(pod: Object, objects: Objects) -> bool:
    """Whether the mesh is to capture the pod, once it runs and has addresses."""
    decision = decide(
        _labels(objects.get(_namespace(pod), {})),
        _labels(pod),
        pod["metadata"].get("annotations") or {},
        host_network=host_network(pod),
        phase="Running",
        addresses=("to come",),
    )
    return isinstance(decision, Enrolled)


def _namespace(pod: Object) -> Key:
    return Key("Namespace", "", pod["metadata"]["namespace"])


def _labels(obj: Object) -> dict[str, str]:
    return obj.get("metadata", {}).get("labels") or {}


def wait_captured(names: LabNames, pod: Object, patience: float = PATIENCE) -> str:
    """Return when the node's agent has captured the pod: empty, or why it has not."""
    node, uid = pod["spec"]["nodeName"], pod["metadata"]["uid"]
    deadline = time.monotonic() + patience
    while process.running(names.node_cgroup(node) / "agent"):
        _, answer = admin_get(names, node, "/v1/pods")
        known = {entry["pod_uid"]: entry for entry in (answer or {}).get("pods", ())}
        found = known.get(uid, {"state": "", "problem": "the agent does not know it"})
        if found["state"] == "captured":
            return ""
        if time.monotonic() > deadline:
            return f"{key_of(pod)}: not captured by {node}'s agent: {found['problem']}"
        time.sleep(_POLL)
    return f"{key_of(pod)}: not captured, as {node} has no agent; mend: ztctl lab up"
