# SPDX-License-Identifier: Apache-2.0
"""The workloads of this node by network namespace, including recently deleted ones."""

from __future__ import annotations

from ztunnel.agent.pods.pod import Pod
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.mesh.model import Workload

MAX_PEERS = 512  # the kernel may report a connection after its pod was deleted


class PeerCache:
    """Maps namespace cookies to workloads; the oldest entries are dropped first."""

    def __init__(self) -> None:
        self._workloads: dict[int, Workload] = {}

    def get(self, cookie: int) -> Workload | None:
        return self._workloads.get(cookie)

    def add(self, pod: Pod) -> None:
        """Remember the pod under its cookie, if it has one."""
        if pod.cookie:
            self._workloads[pod.cookie] = pod.workload

    def refresh(self, pods: CapturedPods) -> None:
        """Remember all pods, and drop what exceeds the limit."""
        for pod in pods:
            self.add(pod)
        while len(self._workloads) > MAX_PEERS:
            del self._workloads[next(iter(self._workloads))]

    def namespace(self, cookie: int) -> str:
        """The Kubernetes namespace of a workload, empty if it is unknown."""
        workload = self._workloads.get(cookie)
        return workload.namespace if workload else ""

    def describe(self, cookie: int, address: str) -> dict[str, str]:
        """A peer as in the workers' lists of connections."""
        workload = self._workloads.get(cookie)
        if workload is None:
            return {"address": address}
        return {
            "address": address,
            "workload": workload.name,
            "namespace": workload.namespace,
            "identity": workload.identity,
        }

    def log_fields(self, prefix: str, cookie: int, address: str) -> dict[str, str]:
        """A peer as fields of an access log line: `src.addr`, `src.workload` and so on."""
        peer = self.describe(cookie, address)
        renamed = {"addr": peer.pop("address"), **peer}
        return {f"{prefix}.{key}": value for key, value in renamed.items()}
