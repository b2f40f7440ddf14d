# SPDX-License-Identifier: Apache-2.0
"""What the Envoys of this node's gateway pods reject, as reported by the gateway process.

With an API server, each pod gets the annotation `ztunnel.dev/rejected-config`, from which the
controller updates the status of routes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from ztunnel.agent.gateways.pods import GatewayPods
from ztunnel.agent.periodic import attempt_async
from ztunnel.agent.workers.handlers import MessageHandlers
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.gateway_messages import GatewayRejected, RejectedResource
from ztunnel.kube.client.access import Access
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.writers.pod_writer import PodWriter
from ztunnel.mesh.enrollment import REJECTED_CONFIG_ANNOTATION
from ztunnel.mesh.model import Workload

INTERVAL_S = 0.2
WRITE_RETRY_S = 5.0  # until a write that failed or that the watch does not show is repeated
MAX_ANNOTATION_RESOURCES = 16
MAX_ANNOTATION_MESSAGE_CHARS = 512  # of each; all annotations of a pod have 256 KiB

log = structlog.get_logger()


class RejectedConfig:
    """By pod uid, the resources that are rejected at present."""

    def __init__(self, pods: GatewayPods) -> None:
        self._pods = pods
        self._by_pod: dict[str, tuple[RejectedResource, ...]] = {}

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handler of reports."""
        handlers.register(GatewayRejected, self._report)

    def of_pod(self, pod_uid: str) -> tuple[RejectedResource, ...]:
        """The rejected resources of a pod."""
        return self._by_pod.get(pod_uid, ())

    def _report(self, session: Session, report: GatewayRejected, fds: list[int]) -> None:
        present = {pod.workload.pod_uid for pod in self._pods.pods()}
        for uid in self._by_pod.keys() - present:
            del self._by_pod[uid]
        if report.pod_uid not in present:
            return
        known = set(self.of_pod(report.pod_uid))
        self._by_pod[report.pod_uid] = report.resources
        for each in report.resources:
            if each not in known:
                log.warning(
                    "gateway configuration rejected",
                    pod=report.pod_uid,
                    resource=each.name,
                    type=each.type_url.rpartition(".")[2],
                    error=each.message,
                )


def annotation_value(resources: tuple[RejectedResource, ...]) -> str:
    """The annotation: {"hash", "resources": [{"type", "name", "message"}]}; "" if there are none.

    The view has the first characters of annotations only, hence the hash in front.
    """
    if not resources:
        return ""
    rows = [
        {
            "type": each.type_url.rpartition("/")[2],
            "name": each.name,
            "message": each.message[:MAX_ANNOTATION_MESSAGE_CHARS],
        }
        for each in resources[:MAX_ANNOTATION_RESOURCES]
    ]
    digest = hashlib.sha256(msgspec.json.encode(rows)).hexdigest()[:16]
    return msgspec.json.encode({"hash": digest, "resources": rows}).decode()


class Writer(Protocol):
    """Blocking; `kube.writers.pod_writer.PodWriter` is one."""

    def annotate_pod(self, pod: Workload, annotation: str, value: str) -> bool: ...


@dataclass(frozen=True)
class _Written:
    value: str
    at: float


class RejectionWriter:
    """Keeps the annotations of this node's gateway pods current."""

    def __init__(
        self,
        pods: GatewayPods,
        rejected: RejectedConfig,
        observed: Callable[[Workload], str],
        writer: Writer,
    ) -> None:
        """`observed` returns a pod's annotation as the API server has it."""
        self._pods = pods
        self._rejected = rejected
        self._observed = observed
        self._writer = writer
        self._written: dict[str, _Written] = {}  # by pod uid

    async def reconcile(self, now: float) -> None:
        """Write what differs at `now`, in seconds of any clock."""
        pods = self._pods.pods()
        present = {pod.workload.pod_uid for pod in pods}
        self._written = {uid: each for uid, each in self._written.items() if uid in present}
        for pod in pods:
            workload = pod.workload
            value = annotation_value(self._rejected.of_pod(workload.pod_uid))
            written = self._written.get(workload.pod_uid)
            observed = self._observed(workload)
            if bool(observed) == bool(value) and value.startswith(observed):
                continue
            if written and written.value == value and now - written.at < WRITE_RETRY_S:
                continue
            self._written[workload.pod_uid] = _Written(value, now)
            try:
                await asyncio.to_thread(
                    self._writer.annotate_pod, workload, REJECTED_CONFIG_ANNOTATION, value
                )
            except ApiError as error:
                log.warning(
                    "rejected configuration not written", pod=workload.uid, error=str(error)
                )


async def run_rejection_writer(
    access: Access, node: str, view: ClusterView, pods: GatewayPods, rejected: RejectedConfig
) -> None:
    """Write annotations until cancelled. Raises AccessError."""

    def observed(pod: Workload) -> str:
        return view.annotation(pod.namespace, pod.name, REJECTED_CONFIG_ANNOTATION)

    with closing(PodWriter(access.client(), node)) as writer:
        reporter = RejectionWriter(pods, rejected, observed, writer)
        while True:
            await attempt_async(lambda: reporter.reconcile(time.monotonic()))
            await asyncio.sleep(INTERVAL_S)
