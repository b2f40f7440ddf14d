# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the gateway process's link, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.support.gateway_fakes import (
    GATEWAY,
    FakeGatewayProcess,
    GatewayNode,
    gateway_workload,
)
from tests.support.kube_objects import gateway as gateway_object
from tests.support.waiting import wait_until_async
from ztunnel.agent.gateways import queries
from ztunnel.agent.gateways.queries import GatewayQueryError
from ztunnel.agent.gateways.rejections import RejectionWriter, annotation_value
from ztunnel.agent.pods.pod import Pod
from ztunnel.ipc.gateway_messages import (
    GatewayListenerKind,
    GatewayPodAdded,
    GatewayQuery,
    GatewayRejected,
    GatewayReply,
    GatewaySettings,
    GatewayView,
    L7Delta,
    RejectedResource,
)
from ztunnel.ipc.messages import MeshDelta, PodReady, PodRemoved, SocketRequest
from ztunnel.mesh.model import Workload

UID = "waypoint-0-uid"
ALL = set(GatewayListenerKind)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[GatewayNode]:
    made = GatewayNode(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def process(node: GatewayNode) -> AsyncIterator[FakeGatewayProcess]:
    made = FakeGatewayProcess(node.path)
    made.greet()
    await wait_until_async(lambda: made.of(L7Delta), "the snapshot")
    yield made
    made.close()


async def test_process_gets_settings_mesh_and_objects_then_pods(
    node: GatewayNode, process: FakeGatewayProcess
) -> None:
    kinds = [type(message) for message in process.messages]
    assert kinds[:3] == [MeshDelta, GatewaySettings, L7Delta]
    assert process.of(L7Delta)[0] == L7Delta(reset=True, complete=True)
    node.capture(gateway_workload())
    await wait_until_async(lambda: process.listeners.get(UID, {}).keys() == ALL, "listeners")
    (added,) = process.of(GatewayPodAdded)
    assert (added.gateway, added.workload) == (GATEWAY, "Kubernetes//Pod/shop/waypoint-0")


async def test_changes_of_objects_follow_the_snapshot(
    node: GatewayNode, process: FakeGatewayProcess
) -> None:
    node.view.upsert(gateway_object("waypoint", namespace="shop"))
    node.publisher.publish()
    await wait_until_async(lambda: len(process.of(L7Delta)) == 2, "the object")
    (body,) = process.of(L7Delta)[1].objects
    assert (body.kind, body.namespace, body.name) == ("Gateway", "shop", "waypoint")
    assert json.loads(body.body)["spec"]["gatewayClassName"]
    node.view.delete("Gateway", "shop", "waypoint")
    node.publisher.publish()
    await wait_until_async(lambda: len(process.of(L7Delta)) == 3, "the removal")
    assert process.of(L7Delta)[2].removed == ("Gateway shop/waypoint",)


async def test_only_gateway_pods_get_listeners(
    node: GatewayNode, process: FakeGatewayProcess
) -> None:
    node.capture(gateway_workload("web", gateway=""))
    node.capture(gateway_workload())
    await wait_until_async(lambda: process.of(GatewayPodAdded), "the pod")
    assert [added.pod_uid for added in process.of(GatewayPodAdded)] == [UID]
    assert len([each for each in node.kernel.journal if each[0] == "listen gateway"]) == 1


async def test_pod_that_is_gone_is_removed(node: GatewayNode, process: FakeGatewayProcess) -> None:
    node.capture(gateway_workload())
    await wait_until_async(lambda: UID in process.listeners, "the pod")
    node.release(UID)
    await wait_until_async(lambda: process.of(PodRemoved), "the removal")
    assert UID not in process.listeners


async def test_replaced_namespace_gets_new_listeners(
    node: GatewayNode, process: FakeGatewayProcess
) -> None:
    first = node.capture(gateway_workload())
    second = node.capture(gateway_workload(), netns="b")
    await wait_until_async(lambda: len(process.of(GatewayPodAdded)) == 2, "the pod twice")
    assert [each.netns_cookie for each in process.of(GatewayPodAdded)] == [first, second]
    assert len(process.of(PodRemoved)) == 1


async def test_without_a_process_connections_are_refused(node: GatewayNode) -> None:
    node.capture(gateway_workload())
    assert not node.pods.pods()[0].listeners
    process = FakeGatewayProcess(node.path)
    process.greet()
    await wait_until_async(lambda: UID in process.listeners, "the pod")
    process.close()
    await wait_until_async(lambda: not node.pods.pods()[0].listeners, "the listeners to close")


async def test_restarted_agent_adopts_the_listeners_of_the_process(tmp_path: Path) -> None:
    first = GatewayNode(tmp_path)
    cookie = first.capture(gateway_workload())
    process = FakeGatewayProcess(first.path)
    process.greet()
    await wait_until_async(lambda: UID in process.listeners, "the pod")
    held = process.listeners
    process.close(keep_listeners=True)
    first.close()

    second = GatewayNode(tmp_path)
    second.captured.put(Pod(gateway_workload()))  # its namespace is not known yet
    again = FakeGatewayProcess(second.path)
    again.greet({UID: (cookie, held[UID])})
    await wait_until_async(lambda: again.of(L7Delta), "the snapshot")
    assert again.of(GatewayPodAdded) == []
    second.capture(gateway_workload())
    await wait_until_async(lambda: again.of(GatewayPodAdded), "the pod")
    (added,) = again.of(GatewayPodAdded)
    assert added.listeners == (), "it holds all of them"
    assert second.pods.pods()[0].listeners.keys() == ALL
    assert again.of(PodRemoved) == []
    again.close()
    second.close()
    for sock in held[UID].values():
        sock.close()


async def test_listeners_of_an_unknown_pod_are_given_up(node: GatewayNode) -> None:
    process = FakeGatewayProcess(node.path)
    process.greet({"gone": (7, {GatewayListenerKind.XDS4: process.sock})})
    await wait_until_async(lambda: process.of(PodRemoved), "the removal")
    process.close()


async def test_port_in_use_is_reported_with_a_hint(
    node: GatewayNode, process: FakeGatewayProcess
) -> None:
    (node.directory / "netns-a").touch()
    node.kernel.port_taken.add((node.directory / "netns-a").stat().st_ino)
    node.capture(gateway_workload())
    assert "hint: these ports" in node.pods.pods()[0].error
    node.kernel.port_taken.clear()
    node.pods.reconcile()
    await wait_until_async(lambda: UID in process.listeners, "the pod")
    assert node.pods.pods()[0].error == ""


async def test_sockets_are_sent_for_gateway_pods_only(
    node: GatewayNode, process: FakeGatewayProcess
) -> None:
    node.capture(gateway_workload("web", gateway=""))
    node.capture(gateway_workload(), netns="b")
    process.channel.send(SocketRequest("web-uid", 4, 1))
    process.channel.send(SocketRequest(UID, 4, 1000))
    await wait_until_async(lambda: process.sockets, "sockets")
    assert len(process.sockets) == 16
    assert node.kernel.made == 16


@pytest.mark.parametrize(
    "message",
    [
        SocketRequest(UID, 4, 1, udp=True),
        SocketRequest(UID, 6, 1),
        PodReady(UID),  # of workers
        GatewayReply(1, b"x" * (1 << 19) + b"x"),
    ],
)
async def test_invalid_message_closes_the_session(
    node: GatewayNode, process: FakeGatewayProcess, message: msgspec.Struct
) -> None:
    process.channel.send(message)
    await wait_until_async(lambda: process.ended, "the end of the session")
    assert node.sessions.rejected_messages == 1


async def test_reply_in_parts_is_joined(node: GatewayNode, process: FakeGatewayProcess) -> None:
    query = asyncio.create_task(node.queries.query(UID, GatewayView.XDS))
    await wait_until_async(lambda: process.of(GatewayQuery), "the query")
    (sent,) = process.of(GatewayQuery)
    process.channel.send(GatewayReply(sent.id, b'{"a":', more=True))
    process.channel.send(GatewayReply(sent.id + 1, b"of no query"))
    process.channel.send(GatewayReply(sent.id, b"1}"))
    assert await query == b'{"a":1}'


async def test_reply_that_never_ends_is_rejected(
    node: GatewayNode, process: FakeGatewayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_TOTAL_BYTES", 1000)
    query = asyncio.create_task(node.queries.query(UID, GatewayView.XDS))
    await wait_until_async(lambda: process.of(GatewayQuery), "the query")
    (sent,) = process.of(GatewayQuery)
    for _ in range(3):
        process.channel.send(GatewayReply(sent.id, b"x" * 400, more=True))
    with pytest.raises(GatewayQueryError, match="too large"):
        await query
    await wait_until_async(lambda: process.ended, "the end of the session")


async def test_query_fails_when_the_process_ends_or_is_missing(
    node: GatewayNode, process: FakeGatewayProcess
) -> None:
    query = asyncio.create_task(node.queries.query(UID, GatewayView.XDS))
    await wait_until_async(lambda: process.of(GatewayQuery), "the query")
    process.close()
    with pytest.raises(GatewayQueryError, match="has ended"):
        await query
    with pytest.raises(GatewayQueryError, match="hint: start `ztunnel gateway`"):
        await node.queries.query(UID, GatewayView.XDS)


class Annotations:
    """A writer whose pods the API server shows with the first characters of annotations."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.writes = 0

    def annotate_pod(self, pod: Workload, annotation: str, value: str) -> bool:
        assert annotation == "ztunnel.dev/rejected-config"
        self.values[pod.pod_uid] = value
        self.writes += 1
        return True

    def observed(self, pod: Workload) -> str:
        return self.values.get(pod.pod_uid, "")[:256]


async def test_rejected_configuration_becomes_an_annotation(
    node: GatewayNode, process: FakeGatewayProcess
) -> None:
    node.capture(gateway_workload())
    written = Annotations()
    writer = RejectionWriter(node.pods, node.rejected, written.observed, written)
    bad = RejectedResource(
        "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "r", "no"
    )
    process.channel.send(GatewayRejected(UID, (bad,)))
    process.channel.send(GatewayRejected("another-pod", (bad,)))
    await wait_until_async(lambda: node.rejected.of_pod(UID), "the report")
    for now in (0.0, 1.0, 100.0):
        await writer.reconcile(now)
    assert written.writes == 1
    assert json.loads(written.values[UID])["resources"] == [
        {"type": "envoy.config.route.v3.RouteConfiguration", "name": "r", "message": "no"}
    ]
    process.channel.send(GatewayRejected(UID, ()))
    await wait_until_async(lambda: not node.rejected.of_pod(UID), "the report")
    await writer.reconcile(101.0)
    assert written.values[UID] == ""


def test_annotations_that_differ_late_have_different_beginnings() -> None:
    first = [RejectedResource("t", "n" * 300, message) for message in ("a", "b")]
    values = [annotation_value((each,)) for each in first]
    assert values[0][:64] != values[1][:64]
