# SPDX-License-Identifier: Apache-2.0
"""Reports the capture of pods to the API server: an annotation per captured pod, and Events.

    every `INTERVAL_S`: annotation differs from the pod's state -> patch -> the watch shows it
                        refused, or an error that lasts         -> one Event each

The annotation makes other nodes use HBONE for the pod. It is set after the pod is captured, and
removed before it is released (`pods.unenroll_grace`). An agent that has just started does not know
yet which pods the kernel captures. It therefore leaves an annotation that it finds on an uncaptured
pod for `ERROR_DURATION_S`: without it, clients would use plaintext for pods that are captured.

Each round compares the desired with the observed state, so failures and restarts lose nothing. A
write that the API server rejects, for example because the pod's own annotations leave no room for
another, delays only that write: the next attempts back off, and other pods come first. If the API
server is unavailable, writes are retried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from ztunnel.agent.cluster import service_accounts
from ztunnel.agent.cluster.service_accounts import Accounts
from ztunnel.agent.periodic import attempt_async
from ztunnel.agent.pods.pod import PodState
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.kube.client.access import Access
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.objects.fields import make_key
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.writers.pod_writer import PodWriter
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION, REDIRECTION_ENABLED
from ztunnel.mesh.model import Workload

INTERVAL_S = 0.1
WRITE_RETRY_S = 5.0  # until a write that failed or that the watch does not show is repeated
MAX_WRITE_RETRY_S = 300.0  # the time doubles with each failure of a write
ERROR_DURATION_S = 15.0  # until an error is reported, or removes an annotation
MAX_WRITES = 50  # per round
CAPTURE_REFUSED, CAPTURE_FAILED = "MeshCaptureRefused", "MeshCaptureFailed"
CERTIFICATE_BLOCKED = "MeshCertificateBlocked"
ANNOTATION_REJECTED = "MeshAnnotationRejected"
POD_INVALID = "MeshPodInvalid"
CAPTURE_BYPASSABLE = "MeshCaptureBypassable"
REJECTED = frozenset({400, 413, 422})  # HTTP statuses that blame the object that is written

WriteKey = tuple[str, str | bool, str]  # pod uid, and what is written

log = structlog.get_logger()


class Writer(Protocol):
    """Blocking; `kube.writers.pod_writer.PodWriter` is one."""

    def annotate_captured(self, pod: Workload, captured: bool) -> bool: ...
    def emit_event(self, pod: Workload, reason: str, message: str) -> None: ...


@dataclass(frozen=True)
class Write:
    """One request about a pod; `perform` blocks. `key` identifies it in later rounds."""

    pod: Workload
    key: WriteKey
    perform: Callable[[], object]


@dataclass(frozen=True)
class WriteFailure:
    """`count` failures in a row; not before `retry_at` again."""

    count: int
    retry_at: float
    error: str
    is_rejection: bool


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
        self._failures: dict[WriteKey, WriteFailure] = {}
        self._is_unavailable = False  # the API server did not answer the last request

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await attempt_async(self._reconcile_now)
            await asyncio.sleep(INTERVAL_S)

    async def _reconcile_now(self) -> None:
        await self.reconcile(time.monotonic())

    async def reconcile(self, now: float) -> None:
        """Write what differs at `now`, in seconds of any clock."""
        local = self._view.pods_on(self._node)
        self._forget_deleted({pod.pod_uid for pod in local})
        pending = [*self._annotations(local, now), *self._events(local, now)]
        keys = {write.key for write in pending}
        self._failures = {key: each for key, each in self._failures.items() if key in keys}
        due = [write for write in pending if self._retry_at(write) <= now]
        due.sort(key=lambda write: write.key in self._failures)  # those that failed come last
        for write in due[:MAX_WRITES]:
            if not await self._perform(write, now):
                break

    def _retry_at(self, write: Write) -> float:
        failure = self._failures.get(write.key)
        return failure.retry_at if failure else 0.0

    async def _perform(self, write: Write, now: float) -> bool:
        """Whether the server responded. A failure delays this write, and no other."""
        try:
            await asyncio.to_thread(write.perform)
        except Exception as error:
            self._record_failure(write, error, now)
            self._is_unavailable = isinstance(error, ApiError) and not error.status
            return not self._is_unavailable
        self._failures.pop(write.key, None)
        self._is_unavailable = False
        return True

    def _record_failure(self, write: Write, error: Exception, now: float) -> None:
        before = self._failures.get(write.key)
        is_rejection = isinstance(error, ApiError) and error.status in REJECTED
        # what an unavailable server does not answer is not the pod's fault
        is_unanswered = isinstance(error, ApiError) and not error.status
        count = (before.count if before else 0) + (not is_unanswered)
        delay_s = min(WRITE_RETRY_S * 2.0 ** max(0, min(count, 16) - 1), MAX_WRITE_RETRY_S)
        text = str(error) if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
        self._failures[write.key] = WriteFailure(count, now + delay_s, text, is_rejection)
        if not (is_unanswered and self._is_unavailable) and (not before or before.error != text):
            log.warning(
                "pod status not written, will retry",
                pod=f"{write.pod.namespace}/{write.pod.name}",
                error=text,
            )

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
                perform = partial(self._annotate, pod, desired, now)
                yield Write(pod, (uid, is_captured, ""), perform)

    def _annotate(self, pod: Workload, desired: str, now: float) -> None:
        self._writer.annotate_captured(pod, desired == REDIRECTION_ENABLED)
        self._annotated[pod.pod_uid] = desired, now

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
            key = make_key("Pod", pod.namespace, pod.name)
            if pod.enrolled and (invalid := self._view.error_of(key)):
                yield from self._event(pod, POD_INVALID, invalid)
            if pod.enrolled and (held := self._view.pod_privileges(pod.namespace, pod.name)):
                message = f"can send traffic past the mesh: {held}; hint: drop these privileges"
                yield from self._event(pod, CAPTURE_BYPASSABLE, message)
            failure = self._failures.get((pod.pod_uid, True, ""))
            if failure and failure.is_rejection:
                message = (
                    f"annotation {REDIRECTION_ANNOTATION} not written: {failure.error}; peers do "
                    "not use HBONE for this pod; hint: remove annotations from the pod"
                )
                yield from self._event(pod, ANNOTATION_REJECTED, message)
            if reason and self._lasts(pod, reason, now):
                hint = "create the ServiceAccount again, or delete the pod"
                message = (
                    f"{reason}: no certificate is requested, and the current one will expire; "
                    f"hint: {hint}"
                )
                yield from self._event(pod, CERTIFICATE_BLOCKED, message)

    def _lasts(self, pod: Workload, message: str, now: float) -> bool:
        return now - self._error_since[pod.pod_uid, message] >= ERROR_DURATION_S

    def _event(self, pod: Workload, reason: str, message: str) -> Iterator[Write]:
        if message not in self._emitted.get(pod.pod_uid, ()):
            perform = partial(self._emit, pod, reason, message)
            yield Write(pod, (pod.pod_uid, reason, message), perform)

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
