# SPDX-License-Identifier: Apache-2.0
"""Selects which pods of the node the enroller captures, after every change of the view."""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.agent.pods.enroller import Enroller
from ztunnel.agent.pods.unenroll_grace import UnenrollGrace
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.model import Workload


class PodSelection(ViewConsumer):
    """The enrolled pods, and those whose grace period after unenrollment lasts."""

    def __init__(self, enroller: Enroller, republish: Callable[[], None]) -> None:
        """`republish` is called when the selection changes by time alone."""
        self._enroller = enroller
        self._grace = UnenrollGrace(republish)
        self._selected: tuple[dict[str, Workload], set[str]] | None = None

    def apply(self, change: ViewChange) -> None:
        previous = set(self._selected[0] if self._selected else ())
        enrolled = self._grace.select(change.local_pods, previous)
        selected = enrolled, {pod.pod_uid for pod in change.local_pods}
        if selected != self._selected:
            self._selected = selected
            self._enroller.want(*selected)
