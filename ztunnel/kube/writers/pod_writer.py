# SPDX-License-Identifier: Apache-2.0
"""What the agent writes into the API: marks of captured pods, Events about refused ones, and on
its own pod how it is asked by a forwarded port.

Blocking calls, for a thread.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION, REDIRECTION_ENABLED
from ztunnel.mesh.model import Workload

COMPONENT = "ztunnel-agent"
TIMEOUT = (5.0, 10.0)  # seconds to connect, and for the answer
_MESSAGE = 1024  # characters, the API server's limit for an Event
_GONE = frozenset({404, 409})  # the pod is no more, or another one has its name


class WriteError(Exception):
    """The API server did not take it; the text says why."""


class PodWriter:
    """Writes by one client, which `close` closes."""

    def __init__(self, client: Any, node: str) -> None:
        self.client = client
        self._node = node

    def mark(self, pod: Workload, captured: bool) -> bool:
        """Set or remove a pod's mark; False when that pod is gone. Raises WriteError.

        By `pods/status`, which lets annotations through: the right to patch `pods` would be the
        right to change what they run. The uid makes it fail for a later pod of the same name.
        """
        value = REDIRECTION_ENABLED if captured else None
        metadata = {"uid": pod.pod_uid, "annotations": {REDIRECTION_ANNOTATION: value}}
        return self._patch(pod.namespace, pod.name, metadata)

    def note(self, namespace: str, pod: str, annotation: str, value: str) -> bool:
        """Set an annotation of a pod, the agent's own; False when there is none. WriteError."""
        return self._patch(namespace, pod, {"annotations": {annotation: value}})

    def event(self, pod: Workload, reason: str, message: str) -> None:
        """Tell people about a pod, once: the same words again are the same Event."""
        path = f"/api/v1/namespaces/{pod.namespace}/events"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._send("POST", path, event(pod, reason, message, self._node, now), "application/json")

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    def _patch(self, namespace: str, pod: str, metadata: dict[str, Any]) -> bool:
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/status"
        kind = "application/merge-patch+json"
        return self._send("PATCH", path, {"metadata": metadata}, kind) not in _GONE

    def _send(self, method: str, path: str, body: Any, kind: str) -> int:
        from urllib3.exceptions import HTTPError  # noqa: PLC0415  comes with the client

        headers = {"Accept": "application/json", "Content-Type": kind}
        request = self.client.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            answer = self.client.call_api(*request, _request_timeout=TIMEOUT)
            text = answer.read()
        except (HTTPError, OSError) as error:
            raise WriteError(" ".join(str(error).split())) from error
        if answer.status not in _GONE and not 200 <= answer.status < 300:
            raise WriteError(f"{answer.status}: {text.decode(errors='replace')[:300]}")
        return int(answer.status)


def event(pod: Workload, reason: str, message: str, node: str, now: str) -> dict[str, Any]:
    """A Warning about a pod. Its name is made of what it says, so that it is there once only."""
    said = "\0".join((pod.pod_uid, reason, message))
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
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
        "message": message[:_MESSAGE],
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
