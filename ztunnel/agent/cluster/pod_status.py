# SPDX-License-Identifier: Apache-2.0
"""Reports the capture of pods to the API server: an annotation per captured pod, and Events.

    every `INTERVAL_S`: annotation differs from the pod's state -> patch -> the watch shows it
                        refused, or an error that lasts         -> one Event each

The annotation makes other nodes use HBONE for the pod. It is set after the pod is captured, and
removed before it is released (`pods.unenroll_grace`). An agent that has just started does not know
yet which pods the kernel captures. It therefore leaves an annotation that it finds on an uncaptured
pod for `ERROR_DURATION_S`: without it, clients would use plaintext for pods that are captured.

Each round compares the desired with the observed state, so failures and restarts lose nothing. If
the API server is unavailable, writes are retried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Protocol

import structlog

from ztunnel.agent.cluster import service_accounts
from ztunnel.agent.cluster.service_accounts import Accounts
from ztunnel.agent.pods.pod import PodState
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.kube.client.access import Access
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.writers.pod_writer import PodWriter
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION, REDIRECTION_ENABLED
from ztunnel.mesh.model import Workload

INTERVAL_S = 0.1
WRITE_RETRY_S = 5.0  # until a write that the watch does not show is repeated
ERROR_DURATION_S = 15.0  # until an error is reported, or removes an annotation
MAX_WRITES = 50  # per round
CAPTURE_REFUSED, CAPTURE_FAILED = "MeshCaptureRefused", "MeshCaptureFailed"
CERTIFICATE_WITHHELD = "MeshCertificateWithheld"

Write = tuple[Callable[..., object], Workload, *tuple[object, ...]]  # a function, its arguments

log = structlog.get_logger()


class Writer(Protocol):
    """Blocking; `kube.writers.pod_writer.PodWriter` is one."""

    def annotate_captured(self, pod: Workload, captured: bool) -> bool: ...
    def emit_event(self, pod: Workload, reason: str, message: str) -> None: ...


class PodStatusReporter:
    """Reports the pods of one node."""

    def __init__(
        self,
        node: str,
        view: ClusterView,
        pods: CapturedPods,
        writer: Writer,
        blocked_reason: Callable[[Workload], str] = lambda _: "",
    ) -> None:
        """`blocked_reason` returns why no certificate is requested for a pod, or ""."""
        self._node = node
        self._view = view
        self._pods = pods
        self._writer = writer
        self._blocked_reason = blocked_reason
        self._annotated: dict[str, tuple[str, float]] = {}  # pod uid -> last value written, when
        self._uncaptured_since: dict[str, float] = {}  # by pod uid, of enrolled pods
        self._error_since: dict[tuple[str, str], float] = {}  # by pod uid and message
        self._emitted: dict[str, set[str]] = {}  # pod uid -> messages of Events
        self._last_error = ""

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await self.reconcile(time.monotonic())
            await asyncio.sleep(INTERVAL_S)

    async def reconcile(self, now: float) -> None:
        """Write what differs at `now`, in seconds of any clock."""
        local = self._view.pods_on(self._node)
        self._forget_deleted({pod.pod_uid for pod in local})
        due = [*self._annotations(local, now), *self._events(local, now)]
        try:
            for write, *arguments in due[:MAX_WRITES]:
                await asyncio.to_thread(write, *arguments)
            self._last_error = ""
        except ApiError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                log.warning("pod status not written, will retry", error=self._last_error)

    def _annotations(self, local: list[Workload], now: float) -> Iterator[Write]:
        captured = {
            pod.uid
            for pod in self._pods
            if pod.state is PodState.CAPTURED and not pod.capture_error
        }
        for pod in local:
            uid = pod.pod_uid
            observed = self._view.annotation(pod.namespace, pod.name, REDIRECTION_ANNOTATION)
            is_captured = pod.enrolled and uid in captured
            desired = ""
            if is_captured or (
                observed == REDIRECTION_ENABLED and self._may_be_captured_soon(pod, now)
            ):
                desired = REDIRECTION_ENABLED
            if is_captured or not pod.enrolled:
                self._uncaptured_since.pop(uid, None)
            if observed == desired:
                self._annotated.pop(uid, None)
                continue
            written, written_at = self._annotated.get(uid, ("", -WRITE_RETRY_S))
            if written != desired or now - written_at >= WRITE_RETRY_S:
                self._annotated[uid] = desired, now
                yield self._writer.annotate_captured, pod, is_captured

    def _may_be_captured_soon(self, pod: Workload, now: float) -> bool:
        if not pod.enrolled:
            return False
        return now - self._uncaptured_since.setdefault(pod.pod_uid, now) < ERROR_DURATION_S

    def _events(self, local: list[Workload], now: float) -> Iterator[Write]:
        errors = {pod.uid: pod.error.message for pod in self._pods if pod.error}
        blocked = {
            pod.pod_uid: reason
            for pod in local
            if pod.enrolled and (reason := self._blocked_reason(pod))
        }
        current = (*errors.items(), *blocked.items())
        self._error_since = {key: self._error_since.get(key, now) for key in current}
        for pod in local:
            error, reason = errors.get(pod.pod_uid, ""), blocked.get(pod.pod_uid, "")
            if pod.capture_refused:
                yield from self._event(pod, CAPTURE_REFUSED, pod.capture_refused)
            elif error and self._lasts(pod, error, now):
                hint = f"run `ztctl pod list` on node {self._node}, or restart the pod"
                message = f"not captured yet: {error}; hint: {hint}"
                yield from self._event(pod, CAPTURE_FAILED, message)
            if reason and self._lasts(pod, reason, now):
                hint = "create the ServiceAccount again, or delete the pod"
                message = (
                    f"{reason}: no certificate is requested, and the current one will expire; "
                    f"hint: {hint}"
                )
                yield from self._event(pod, CERTIFICATE_WITHHELD, message)

    def _lasts(self, pod: Workload, message: str, now: float) -> bool:
        return now - self._error_since[pod.pod_uid, message] >= ERROR_DURATION_S

    def _event(self, pod: Workload, reason: str, message: str) -> Iterator[Write]:
        if message not in self._emitted.get(pod.pod_uid, ()):
            yield self._emit, pod, reason, message

    def _emit(self, pod: Workload, reason: str, message: str) -> None:
        self._writer.emit_event(pod, reason, message)
        self._emitted.setdefault(pod.pod_uid, set()).add(message)

    def _forget_deleted(self, present: set[str]) -> None:
        for by_uid in (self._annotated, self._emitted, self._uncaptured_since):
            for uid in by_uid.keys() - present:
                del by_uid[uid]


async def run_pod_status(
    access: Access, node: str, view: ClusterView, pods: CapturedPods, accounts: Accounts
) -> None:
    """Report to the API server until cancelled. Raises AccessError."""

    def blocked_reason(pod: Workload) -> str:
        return service_accounts.blocked_reason(accounts, pod.namespace, pod.service_account)

    with closing(PodWriter(access.client(), node)) as writer:
        await PodStatusReporter(node, view, pods, writer, blocked_reason).run()
