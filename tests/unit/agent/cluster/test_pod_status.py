# SPDX-License-Identifier: Apache-2.0
"""Annotations and Events follow the capture; a failing API server only delays them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kube_objects import namespace
from ztunnel.agent.cluster.pod_status import ERROR_DURATION_S, WRITE_RETRY_S, PodStatusReporter
from ztunnel.agent.pods.pod import Pod, PodState
from ztunnel.agent.pods.registry import PodTable
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.writers.pod_writer import event
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION
from ztunnel.mesh.model import Workload


class World:
    """A view with one pod of node n1 in an ambient namespace, and a writer that records."""

    def __init__(self) -> None:
        self.view = ClusterView("td", "c", annotated_only=True)
        self.view.upsert(namespace("shop", {"istio.io/dataplane-mode": "ambient"}))
        self.pods = PodTable()
        self.annotated: list[tuple[str, bool]] = []
        self.events: list[tuple[str, str]] = []
        self.fails = False
        self.blocked = ""
        self.reporter = PodStatusReporter("n1", self.view, self.pods, self, lambda _: self.blocked)
        self.now = 1000.0

    def pod(self, annotations: dict[str, str] | None = None, **spec: Any) -> Workload:
        self.view.upsert(
            {
                "kind": "Pod",
                "metadata": {
                    "name": "a",
                    "namespace": "shop",
                    "uid": "u1",
                    "annotations": annotations or {},
                },
                "spec": {"nodeName": "n1", **spec},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
            }
        )
        (found,) = self.view.pods_on("n1")
        return found

    async def reconcile(self, later: float = 0.0) -> None:
        self.now += later
        await self.reporter.reconcile(self.now)

    def annotate_captured(self, pod: Workload, captured: bool) -> bool:
        self._may_fail()
        self.annotated.append((pod.name, captured))
        return True

    def emit_event(self, pod: Workload, reason: str, message: str) -> None:
        self._may_fail()
        self.events.append((reason, message))

    def _may_fail(self) -> None:
        if self.fails:
            raise ApiError(503, "away")


def captured(pod: Workload) -> Pod:
    return Pod(pod, state=PodState.CAPTURED, capture_error=None)


async def test_captured_pod_is_annotated_once() -> None:
    world = World()
    workload = world.pod()
    await world.reconcile()
    assert world.annotated == []
    world.pods.put(captured(workload))
    await world.reconcile()
    await world.reconcile()
    assert world.annotated == [("a", True)]
    world.pod({REDIRECTION_ANNOTATION: "enabled"})
    await world.reconcile(WRITE_RETRY_S)
    assert world.annotated == [("a", True)]


async def test_annotation_that_does_not_appear_is_written_again() -> None:
    world = World()
    world.pods.put(captured(world.pod()))
    await world.reconcile()
    await world.reconcile(WRITE_RETRY_S)
    assert world.annotated == [("a", True), ("a", True)]


async def test_annotation_is_removed_before_unenrolled_pod_is_released() -> None:
    world = World()
    world.pods.put(captured(world.pod({REDIRECTION_ANNOTATION: "enabled"})))
    world.view.upsert(namespace("shop", {}))
    await world.reconcile()
    assert world.annotated == [("a", False)]


@pytest.mark.parametrize("value", ["pending", "x"])
async def test_invalid_annotation_is_removed(value: str) -> None:
    world = World()
    world.pod({REDIRECTION_ANNOTATION: value})
    await world.reconcile()
    assert world.annotated == [("a", False)]


async def test_starting_agent_leaves_annotations_of_pods_it_has_not_found() -> None:
    world = World()
    workload = world.pod({REDIRECTION_ANNOTATION: "enabled"})
    await world.reconcile()
    await world.reconcile(ERROR_DURATION_S / 2)
    world.pods.put(captured(workload))
    await world.reconcile(ERROR_DURATION_S)
    world.pods.remove(workload.pod_uid)  # its processes ended; discovery starts again
    await world.reconcile(ERROR_DURATION_S / 2)
    await world.reconcile(ERROR_DURATION_S / 3)
    assert world.annotated == []


async def test_annotation_of_uncaptured_pod_is_removed_after_a_while() -> None:
    world = World()
    world.pod({REDIRECTION_ANNOTATION: "enabled"})
    await world.reconcile()
    await world.reconcile(ERROR_DURATION_S)
    assert world.annotated == [("a", False)]


async def test_annotation_flip_is_written_without_waiting_for_watch() -> None:
    world = World()
    workload = world.pod({REDIRECTION_ANNOTATION: "x"})
    await world.reconcile()
    world.pods.put(captured(workload))
    await world.reconcile()
    assert world.annotated == [("a", False), ("a", True)]


async def test_refused_capture_emits_one_event_with_hint() -> None:
    world = World()
    world.pod(hostNetwork=True)
    await world.reconcile()
    await world.reconcile(100)
    ((reason, message),) = world.events
    assert reason == "MeshCaptureRefused"
    assert "remove the label" in message


async def event_after_error_duration(world: World) -> tuple[str, str]:
    """The only Event of an error that lasts: not before ERROR_DURATION_S, and once."""
    await world.reconcile()
    await world.reconcile(ERROR_DURATION_S / 2)
    assert world.events == []
    await world.reconcile(ERROR_DURATION_S / 2)
    await world.reconcile(ERROR_DURATION_S)
    ((reason, message),) = world.events
    return reason, message


async def test_error_emits_event_only_if_it_lasts() -> None:
    world = World()
    world.pods.put(Pod(world.pod()))
    reason, message = await event_after_error_duration(world)
    assert reason == "MeshCaptureFailed"
    assert "no process of the pod" in message


async def test_missing_service_account_emits_event_with_hint() -> None:
    world = World()
    world.pods.put(captured(world.pod({REDIRECTION_ANNOTATION: "enabled"})))
    world.blocked = "service account shop/default does not exist"
    reason, message = await event_after_error_duration(world)
    assert reason == "MeshCertificateWithheld"
    assert message.startswith("service account shop/default does not exist: no certificate")
    assert "create the ServiceAccount again" in message


async def test_pod_outside_the_mesh_needs_no_service_account() -> None:
    world = World()
    world.pod(hostNetwork=True)
    world.blocked = "service account shop/default does not exist"
    await world.reconcile()
    await world.reconcile(2 * ERROR_DURATION_S)
    assert [reason for reason, _ in world.events] == ["MeshCaptureRefused"]


async def test_write_is_retried_while_api_server_is_unavailable() -> None:
    world = World()
    world.pods.put(captured(world.pod(hostNetwork=False)))
    world.fails = True
    await world.reconcile()
    world.fails = False
    await world.reconcile(WRITE_RETRY_S)
    assert world.annotated == [("a", True)]


def test_same_message_is_the_same_event() -> None:
    pod = World().pod()
    one, same, other = (event(pod, "R", text, "n1", "now") for text in ("x", "x", "y"))
    assert one["metadata"]["name"] == same["metadata"]["name"] != other["metadata"]["name"]
    assert one["involvedObject"]["uid"] == "u1"
    assert len(event(pod, "R", "m" * 5000, "n1", "now")["message"]) == 1024
