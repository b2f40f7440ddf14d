# SPDX-License-Identifier: Apache-2.0
"""The pods of this node that the agent captures, as other components of the agent see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ztunnel.agent.pods.pod import Pod, PodState


class CapturedPods:
    """Read-only: the pods to capture, in every state of enrollment."""

    def __init__(self, pods: Iterable[Pod] = ()) -> None:
        self._pods = {pod.uid: pod for pod in pods}

    def __iter__(self) -> Iterator[Pod]:
        """Over a copy: the table may change meanwhile."""
        return iter(list(self._pods.values()))

    def __contains__(self, pod_uid: str) -> bool:
        return pod_uid in self._pods

    def get(self, pod_uid: str) -> Pod | None:
        """The pod with this metadata.uid."""
        return self._pods.get(pod_uid)

    def by_cookie(self, cookie: int) -> Pod | None:
        """The pod that lives in a network namespace."""
        return next((pod for pod in self._pods.values() if pod.cookie == cookie), None)

    def redirected(self) -> dict[int, Pod]:
        """By namespace cookie, the pods whose connections the kernel redirects."""
        return {pod.cookie: pod for pod in self._pods.values() if pod.state is PodState.CAPTURED}


class PodTable(CapturedPods):
    """The registry with the operations of its only writer, `enroller.Enroller`."""

    def put(self, pod: Pod) -> None:
        """Add a pod, or replace the one with its uid."""
        self._pods[pod.uid] = pod

    def remove(self, pod_uid: str) -> None:
        """Forget a pod. Idempotent."""
        self._pods.pop(pod_uid, None)
