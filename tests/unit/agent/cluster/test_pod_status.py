# SPDX-License-Identifier: Apache-2.0
"""Marks and Events follow the capture, and a failing API server costs nothing but time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kube_objects import namespace
from ztunnel.agent.cluster.pod_status import AGAIN, PATIENCE, PodStatusReporter
from ztunnel.agent.pods.pod import Pod, PodState
from ztunnel.agent.pods.registry import PodTable
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.writers.pod_writer import event
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION
from ztunnel.mesh.model import Workload


class World:
    """A mirror with one pod of node n1 in an ambient namespace, and a writer that notes."""

    def __init__(self) -> None:
        self.mirror = ClusterView("td", "c", annotated_only=True)
        self.mirror.upsert(namespace("shop", {"istio.io/dataplane-mode": "ambient"}))
        self.pods = PodTable()
        self.marks: list[tuple[str, bool]] = []
        self.events: list[tuple[str, str]] = []
        self.fails = False
        self.withheld = ""
        self.signs = PodStatusReporter("n1", self.mirror, self.pods, self, lambda _: self.withheld)
        self.now = 1000.0

    def pod(self, annotations: dict[str, str] | None = None, **spec: Any) -> Workload:
        self.mirror.upsert(
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
        (found,) = self.mirror.pods_on("n1")
        return found

    async def turn(self, later: float = 0.0) -> None:
        self.now += later
        await self.signs.turn(self.now)

    def annotate_captured(self, pod: Workload, captured: bool) -> bool:
        self._may_fail()
        self.marks.append((pod.name, captured))
        return True

    def emit_event(self, pod: Workload, reason: str, message: str) -> None:
        self._may_fail()
        self.events.append((reason, message))

    def _may_fail(self) -> None:
        if self.fails:
            raise ApiError(503, "away")


def captured(pod: Workload) -> Pod:
    return Pod(pod, state=PodState.CAPTURED, capture_error=None)


async def test_a_captured_pod_is_marked_once() -> None:
    world = World()
    workload = world.pod()
    await world.turn()
    assert world.marks == []
    world.pods.put(captured(workload))
    await world.turn()
    await world.turn()
    assert world.marks == [("a", True)]
    world.pod({REDIRECTION_ANNOTATION: "enabled"})
    await world.turn(AGAIN)
    assert world.marks == [("a", True)]


async def test_a_mark_that_does_not_appear_is_written_again() -> None:
    world = World()
    world.pods.put(captured(world.pod()))
    await world.turn()
    await world.turn(AGAIN)
    assert world.marks == [("a", True), ("a", True)]


async def test_a_pod_that_is_to_leave_is_unmarked_while_it_is_still_captured() -> None:
    world = World()
    world.pods.put(captured(world.pod({REDIRECTION_ANNOTATION: "enabled"})))
    world.mirror.upsert(namespace("shop", {}))
    await world.turn()
    assert world.marks == [("a", False)]


@pytest.mark.parametrize("value", ["pending", "x"])
async def test_what_is_no_mark_is_removed(value: str) -> None:
    world = World()
    world.pod({REDIRECTION_ANNOTATION: value})
    await world.turn()
    assert world.marks == [("a", False)]


async def test_an_agent_that_starts_leaves_marks_of_pods_it_has_not_found_yet() -> None:
    world = World()
    workload = world.pod({REDIRECTION_ANNOTATION: "enabled"})
    await world.turn()
    await world.turn(PATIENCE / 2)
    world.pods.put(captured(workload))
    await world.turn(PATIENCE)
    world.pods.remove(workload.pod_uid)  # its processes ended, and begin anew
    await world.turn(PATIENCE / 2)
    await world.turn(PATIENCE / 3)
    assert world.marks == []


async def test_a_mark_that_stays_untrue_is_removed() -> None:
    world = World()
    world.pod({REDIRECTION_ANNOTATION: "enabled"})
    await world.turn()
    await world.turn(PATIENCE)
    assert world.marks == [("a", False)]


async def test_a_changed_mind_does_not_wait_for_the_watch() -> None:
    world = World()
    workload = world.pod({REDIRECTION_ANNOTATION: "x"})
    await world.turn()
    world.pods.put(captured(workload))
    await world.turn()
    assert world.marks == [("a", False), ("a", True)]


async def test_a_refusal_is_told_once_with_its_mend() -> None:
    world = World()
    world.pod(hostNetwork=True)
    await world.turn()
    await world.turn(100)
    ((reason, message),) = world.events
    assert reason == "MeshCaptureRefused"
    assert "remove the label" in message


async def what_is_told_in_the_end(world: World) -> tuple[str, str]:
    """The one Event of a problem that lasts: not before its time, and once."""
    await world.turn()
    await world.turn(PATIENCE / 2)
    assert world.events == []
    await world.turn(PATIENCE / 2)
    await world.turn(PATIENCE)
    ((reason, message),) = world.events
    return reason, message


async def test_a_problem_is_told_only_when_it_lasts() -> None:
    world = World()
    world.pods.put(Pod(world.pod()))
    reason, message = await what_is_told_in_the_end(world)
    assert reason == "MeshCaptureFailed"
    assert "no process of the pod" in message


async def test_a_pod_whose_account_stays_away_is_told_of_with_the_mend() -> None:
    world = World()
    world.pods.put(captured(world.pod({REDIRECTION_ANNOTATION: "enabled"})))
    world.withheld = "service account shop/default does not exist"
    reason, message = await what_is_told_in_the_end(world)
    assert reason == "MeshCertificateWithheld"
    assert message.startswith("service account shop/default does not exist: no certificate")
    assert "make the account again" in message


async def test_a_pod_outside_the_mesh_needs_no_account() -> None:
    world = World()
    world.pod(hostNetwork=True)
    world.withheld = "service account shop/default does not exist"
    await world.turn()
    await world.turn(2 * PATIENCE)
    assert [reason for reason, _ in world.events] == ["MeshCaptureRefused"]


async def test_a_server_that_is_away_is_asked_again() -> None:
    world = World()
    world.pods.put(captured(world.pod(hostNetwork=False)))
    world.fails = True
    await world.turn()
    world.fails = False
    await world.turn(AGAIN)
    assert world.marks == [("a", True)]


def test_the_same_words_make_the_same_event() -> None:
    pod = World().pod()
    one, same, other = (event(pod, "R", text, "n1", "now") for text in ("x", "x", "y"))
    assert one["metadata"]["name"] == same["metadata"]["name"] != other["metadata"]["name"]
    assert one["involvedObject"]["uid"] == "u1"
    assert len(event(pod, "R", "m" * 5000, "n1", "now")["message"]) == 1024
