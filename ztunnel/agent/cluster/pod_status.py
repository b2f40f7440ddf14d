# SPDX-License-Identifier: Apache-2.0
"""Keep what people see of the capture in `kubectl` true: a mark on each captured pod, and Events.

    every TURN: marks that are not as they should be ──▶ patch ──▶ the watch shows it ──▶ true
                refusals, and problems that last     ──▶ one Event each

The mark tells other nodes to speak HBONE to the pod: it comes once the pod is captured, and goes
before it is let go (`agent.leaving`). An agent that has just started does not know yet which pods
the kernel captures for it: a mark it finds stands until that has been so for PATIENCE, or clients
would be told to speak in the clear to pods that are captured all the while. This compares what is
with what should be, so nothing is lost by a failure or a restart; a server that is away is asked
again later.
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

TURN = 0.1  # seconds between looks
AGAIN = 5.0  # seconds until a write is tried again that the watch does not show
PATIENCE = 15.0  # seconds a problem must last to be told, or to cost a mark: most are gone in one
MOST = 50  # writes a turn
REFUSED, FAILED = "MeshCaptureRefused", "MeshCaptureFailed"
WITHHELD = "MeshCertificateWithheld"

Write = tuple[Callable[..., object], Workload, *tuple[object, ...]]  # a call, and its words

log = structlog.get_logger()


class Writer(Protocol):
    """Blocking; `kube.writers.pod_writer.PodWriter` is one."""

    def annotate_captured(self, pod: Workload, captured: bool) -> bool: ...
    def emit_event(self, pod: Workload, reason: str, message: str) -> None: ...


class PodStatusReporter:
    """For the pods of one node."""

    def __init__(
        self,
        node: str,
        mirror: ClusterView,
        pods: CapturedPods,
        writer: Writer,
        withheld: Callable[[Workload], str] = lambda _: "",
    ) -> None:
        """`withheld` says why no certificate is asked for a pod; empty when one is."""
        self._node = node
        self._mirror = mirror
        self._pods = pods
        self._writer = writer
        self._withheld = withheld
        self._tried: dict[str, tuple[str, float]] = {}  # pod uid → mark last written, and when
        self._uncaptured: dict[str, float] = {}  # pod uid → since when it is, though enrolled
        self._since: dict[tuple[str, str], float] = {}  # pod uid, problem → first seen
        self._told: dict[str, set[str]] = {}  # pod uid → what was said of it
        self._complaint = ""

    async def run(self) -> None:
        """Keep at it until cancelled."""
        while True:
            await self.turn(time.monotonic())
            await asyncio.sleep(TURN)

    async def turn(self, now: float) -> None:
        """One look, and what follows from it."""
        local = self._mirror.pods_on(self._node)
        self._forget({pod.pod_uid for pod in local})
        due = [*self._unmarked(local, now), *self._untold(local, now)]
        try:
            for write, *words in due[:MOST]:
                await asyncio.to_thread(write, *words)
            self._complaint = ""
        except ApiError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("not written to the API", error=self._complaint, note="tried again")

    def _unmarked(self, local: list[Workload], now: float) -> Iterator[Write]:
        captured = {
            pod.uid
            for pod in self._pods
            if pod.state is PodState.CAPTURED and not pod.capture_error
        }
        for pod in local:
            uid, has = (
                pod.pod_uid,
                self._mirror.annotation(pod.namespace, pod.name, REDIRECTION_ANNOTATION),
            )
            should = pod.enrolled and uid in captured
            wanted = (
                REDIRECTION_ENABLED
                if should or (has == REDIRECTION_ENABLED and self._may_be(pod, now))
                else ""
            )
            if should or not pod.enrolled:
                self._uncaptured.pop(uid, None)
            if has == wanted:
                self._tried.pop(uid, None)
                continue
            tried, at = self._tried.get(uid, ("", -AGAIN))
            if tried != wanted or now - at >= AGAIN:
                self._tried[uid] = wanted, now
                yield self._writer.annotate_captured, pod, should

    def _may_be(self, pod: Workload, now: float) -> bool:
        """Whether an enrolled pod may turn out to be captured soon."""
        return pod.enrolled and now - self._uncaptured.setdefault(pod.pod_uid, now) < PATIENCE

    def _untold(self, local: list[Workload], now: float) -> Iterator[Write]:
        problems = {pod.uid: pod.error.message for pod in self._pods if pod.error}
        withheld = {
            pod.pod_uid: reason for pod in local if pod.enrolled and (reason := self._withheld(pod))
        }
        lasting = (*problems.items(), *withheld.items())
        self._since = {key: self._since.get(key, now) for key in lasting}
        for pod in local:
            problem = problems.get(pod.pod_uid, "")
            if pod.capture_refused:
                yield from self._say(pod, REFUSED, pod.capture_refused)
            elif problem and now - self._since[pod.pod_uid, problem] >= PATIENCE:
                mend = f"see `ztctl pod list` on node {self._node}, or restart the pod"
                yield from self._say(pod, FAILED, f"not captured yet: {problem} — {mend}")
            reason = withheld.get(pod.pod_uid, "")
            if reason and now - self._since[pod.pod_uid, reason] >= PATIENCE:
                end = "no certificate is asked for, and the one it has will expire"
                mend = "make the account again, or delete the pod"
                yield from self._say(pod, WITHHELD, f"{reason}: {end} — {mend}")

    def _say(self, pod: Workload, reason: str, message: str) -> Iterator[Write]:
        told = self._told.setdefault(pod.pod_uid, set())
        if message not in told:
            yield self._tell, pod, reason, message

    def _tell(self, pod: Workload, reason: str, message: str) -> None:
        self._writer.emit_event(pod, reason, message)
        self._told.setdefault(pod.pod_uid, set()).add(message)

    def _forget(self, present: set[str]) -> None:
        for kept in (self._tried, self._told, self._uncaptured):
            for uid in kept.keys() - present:
                del kept[uid]


async def run_pod_status(
    access: Access, node: str, view: ClusterView, pods: CapturedPods, accounts: Accounts
) -> None:
    """Report to the API server, until cancelled. Raises AccessError."""
    with closing(PodWriter(access.client(), node)) as writer:
        await PodStatusReporter(
            node,
            view,
            pods,
            writer,
            lambda pod: service_accounts.missing(accounts, pod.namespace, pod.service_account),
        ).run()
