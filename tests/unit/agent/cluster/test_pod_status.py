# SPDX-License-Identifier: Apache-2.0
"""Annotations and Events follow the capture; a failing API server only delays them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.kube_objects import namespace
from tests.support.waiting import wait_until_async
from ztunnel.agent.cluster import pod_status
from ztunnel.agent.cluster.pod_status import (
    ANNOTATION_REJECTED,
    CAPTURE_BYPASSABLE,
    ERROR_DURATION_S,
    MAX_WRITE_RETRY_S,
    MAX_WRITES,
    POD_INVALID,
    WRITE_RETRY_S,
    PodStatusReporter,
)
from ztunnel.agent.pods.pod import Pod, PodState
from ztunnel.agent.pods.registry import PodTable
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.objects.translation import CAPACITY_ANNOTATION
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
        self.rejected: dict[str, ApiError] = {}  # by name of the pod
        self.attempts: list[str] = []  # names of pods whose annotation was written or rejected
        self.blocked = ""
        self.reporter = PodStatusReporter("n1", self.view, self.pods, self, lambda _: self.blocked)
        self.now = 1000.0

    def pod(
        self, annotations: dict[str, str] | None = None, name: str = "a", **spec: Any
    ) -> Workload:
        self.view.upsert(
            {
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": "shop",
                    "uid": "u1" if name == "a" else f"u-{name}",
                    "annotations": annotations or {},
                },
                "spec": {"nodeName": "n1", **spec},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
            }
        )
        (found,) = [each for each in self.view.pods_on("n1") if each.name == name]
        return found

    async def reconcile(self, later: float = 0.0) -> None:
        self.now += later
        await self.reporter.reconcile(self.now)

    def annotate_captured(self, pod: Workload, captured: bool) -> bool:
        self.attempts.append(pod.name)
        self._may_fail()
        if pod.name in self.rejected:
            raise self.rejected[pod.name]
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
    assert reason == "MeshCertificateBlocked"
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


TOO_LONG = ApiError(422, "metadata.annotations: Too long: may not be more than 262144 bytes")


@pytest.mark.parametrize(
    "error",
    [TOO_LONG, ApiError(403, "denied"), ApiError(500, "webhook"), ApiError(429, "")],
    ids=str,
)
async def test_rejected_annotation_delays_no_other_pod(error: ApiError) -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.pods.put(captured(world.pod(name=name)))
    world.rejected["a"] = error
    await world.reconcile()
    assert world.annotated == [("b", True), ("c", True)]


async def test_more_rejected_annotations_than_a_round_has_writes_delay_no_other_pod() -> None:
    world = World()
    names = [f"hostile-{number}" for number in range(2 * MAX_WRITES)]
    world.rejected = dict.fromkeys(names, TOO_LONG)
    for name in names:
        world.pods.put(captured(world.pod(name=name)))
    for _ in range(3):
        await world.reconcile(0.1)
    world.pods.put(captured(world.pod(name="late")))
    await world.reconcile(WRITE_RETRY_S)
    assert world.annotated == [("late", True)]


async def test_all_pods_of_a_full_node_are_annotated_without_retry_delay() -> None:
    world = World()
    names = [f"p{number}" for number in range(2 * MAX_WRITES)]
    for name in names:
        world.pods.put(captured(world.pod(name=name)))
    await world.reconcile()
    await world.reconcile(0.1)
    assert sorted(name for name, _ in world.annotated) == sorted(names)


async def test_rejected_annotation_backs_off_and_emits_one_event() -> None:
    world = World()
    world.pods.put(captured(world.pod()))
    world.rejected["a"] = TOO_LONG
    for _ in range(20 * 60):
        await world.reconcile(1.0)
    assert len(world.attempts) == 9  # after 5, 10, ... 160 s, then every 300 s
    ((reason, message),) = world.events
    assert reason == ANNOTATION_REJECTED
    assert "Too long" in message
    assert "remove annotations" in message
    del world.rejected["a"]
    await world.reconcile(MAX_WRITE_RETRY_S)
    assert world.annotated == [("a", True)]


async def test_backoff_of_rejected_annotation_does_not_delay_its_removal() -> None:
    world = World()
    world.pods.put(captured(world.pod({REDIRECTION_ANNOTATION: "x"})))
    world.rejected["a"] = TOO_LONG
    await world.reconcile()
    world.rejected.clear()
    world.view.upsert(namespace("shop", {}))
    await world.reconcile()
    assert world.annotated == [("a", False)]


async def test_pod_that_has_an_invalid_field_has_one_event() -> None:
    world = World()
    world.pod({CAPACITY_ANNOTATION: "many"})
    await world.reconcile()
    await world.reconcile(1.0)
    ((reason, message),) = world.events
    assert reason == POD_INVALID
    assert "want a positive number" in message


async def test_enrolled_pod_with_net_admin_has_one_event() -> None:
    world = World()
    added = {"capabilities": {"add": ["NET_ADMIN"]}}
    world.pod(containers=[{"name": "vpn", "securityContext": added}])
    await world.reconcile()
    await world.reconcile(1.0)
    ((reason, message),) = world.events
    assert reason == CAPTURE_BYPASSABLE
    assert "container vpn has NET_ADMIN" in message


async def test_defect_of_writer_does_not_end_the_reporter() -> None:
    world = World()
    for name in ("a", "b"):
        world.pods.put(captured(world.pod(name=name)))
    world.rejected["a"] = RuntimeError("defect")  # type: ignore[assignment]
    await world.reconcile()
    assert world.annotated == [("b", True)]


async def test_defect_of_one_round_does_not_end_the_reporter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pod_status, "INTERVAL_S", 0.001)
    world = World()
    rounds = 0

    async def reconcile(_: float) -> None:
        nonlocal rounds
        rounds += 1
        raise KeyError("defect")

    monkeypatch.setattr(world.reporter, "reconcile", reconcile)
    running = asyncio.create_task(world.reporter.run())
    await wait_until_async(lambda: rounds > 1)
    assert not running.done()
    running.cancel()


async def test_unavailable_server_is_not_tried_for_every_pod() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.pods.put(captured(world.pod(name=name)))
    world.rejected["a"] = ApiError(0, "connection refused")
    await world.reconcile()
    assert world.attempts == ["a"]
    await world.reconcile(0.1)
    assert world.annotated == [("b", True), ("c", True)]


def test_same_message_is_the_same_event() -> None:
    pod = World().pod()
    one, same, other = (event(pod, "R", text, "n1", "now") for text in ("x", "x", "y"))
    assert one["metadata"]["name"] == same["metadata"]["name"] != other["metadata"]["name"]
    assert one["involvedObject"]["uid"] == "u1"
    assert len(event(pod, "R", "m" * 5000, "n1", "now")["message"]) == 1024
