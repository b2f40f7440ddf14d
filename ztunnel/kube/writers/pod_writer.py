# SPDX-License-Identifier: Apache-2.0
"""The agent's writes: annotations of captured pods, Events on pods that it cannot capture, and
the admin endpoint's annotation on the agent's own pod. Blocking calls.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from ztunnel.kube.client.request import (
    CONFLICT,
    MERGE_PATCH,
    NOT_FOUND,
    ApiError,
    is_namespace_ending,
    send,
)
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION, REDIRECTION_ENABLED
from ztunnel.mesh.model import Workload

COMPONENT = "ztunnel-agent"
_MAX_MESSAGE_CHARS = 1024  # of an Event, enforced by the API server
_POD_GONE = frozenset({NOT_FOUND, CONFLICT})  # deleted, or another pod has the name


class PodWriter:
    """Uses `client` until `close` closes it. Methods raise ApiError."""

    def __init__(self, client: Any, node: str) -> None:
        self.client = client
        self._node = node

    def annotate_captured(self, pod: Workload, captured: bool) -> bool:
        """Set or remove a pod's redirection annotation; False if the pod no longer exists.

        Patches `pods/status`, which may change annotations but not what a pod runs: the agent
        needs no right to patch `pods`. The uid makes the patch fail for a later pod of that name.
        """
        value = REDIRECTION_ENABLED if captured else None
        metadata = {"uid": pod.pod_uid, "annotations": {REDIRECTION_ANNOTATION: value}}
        return self._patch_metadata(pod.namespace, pod.name, metadata)

    def annotate(self, namespace: str, pod: str, annotation: str, value: str) -> bool:
        """Set an annotation of a pod; False if the pod does not exist."""
        return self._patch_metadata(namespace, pod, {"annotations": {annotation: value}})

    def annotate_pod(self, pod: Workload, annotation: str, value: str) -> bool:
        """Set an annotation of this very pod, or remove it; False if the pod no longer exists."""
        metadata = {"uid": pod.pod_uid, "annotations": {annotation: value or None}}
        return self._patch_metadata(pod.namespace, pod.name, metadata)

    def emit_event(self, pod: Workload, reason: str, message: str) -> None:
        """Create a Warning Event on a pod, unless the same Event exists."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        path = f"/api/v1/namespaces/{pod.namespace}/events"
        try:
            send(self.client, "POST", path, body=event(pod, reason, message, self._node, now))
        except ApiError as error:
            if error.status not in _POD_GONE and not is_namespace_ending(error):
                raise

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    def _patch_metadata(self, namespace: str, pod: str, metadata: dict[str, Any]) -> bool:
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/status"
        body = {"metadata": metadata}
        try:
            send(self.client, "PATCH", path, body=body, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status in _POD_GONE:
                return False
            raise
        return True


def event(pod: Workload, reason: str, message: str, node: str, now: str) -> dict[str, Any]:
    """A Warning Event on a pod. Its name is a hash of its content, so that it exists once."""
    content = "\0".join((pod.pod_uid, reason, message))
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{pod.name}.{digest}", "namespace": pod.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.pod_uid,
        },
        "type": "Warning",
        "reason": reason,
        "message": message[:_MAX_MESSAGE_CHARS],
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
