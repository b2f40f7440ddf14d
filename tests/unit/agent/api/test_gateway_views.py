# SPDX-License-Identifier: Apache-2.0
"""The admin API's view of gateway pods, over a real link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.gateway_fakes import FakeGatewayProcess, GatewayNode, gateway_workload
from tests.support.waiting import wait_until_async
from ztunnel.agent.api.admin_server import AdminServer
from ztunnel.agent.api.gateway_views import GatewayViews
from ztunnel.datapath.gateway_port_map import OpenPort
from ztunnel.ipc.gateway_messages import (
    GatewayQuery,
    GatewayRejected,
    GatewayReply,
    GatewayView,
    RejectedResource,
)
from ztunnel.telemetry.exposition import Snapshot, render

UID = "waypoint-0-uid"


class NoViews:
    """The other resources, which these tests do not request."""

    def __getattr__(self, name: str) -> object:
        return lambda *_: {}


class Api:
    def __init__(self, node: GatewayNode, path: Path) -> None:
        self.node = node
        self.admitted: dict[OpenPort, int] = {}
        views = GatewayViews(
            node.pods, node.sessions, node.rejected, node.queries, lambda: self.admitted
        )
        self.server = AdminServer(path, NoViews(), None, views)  # type: ignore[arg-type]
        self.path = path

    async def request(self, path: str, method: str = "GET") -> tuple[int, str]:
        connector = aiohttp.UnixConnector(str(self.path))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://agent{path}") as response,
        ):
            return response.status, await response.text()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    made = Api(GatewayNode(tmp_path), tmp_path / "admin.sock")
    await made.server.start()
    yield made
    await made.server.close()
    made.node.close()


@pytest.fixture
async def process(api: Api) -> AsyncIterator[FakeGatewayProcess]:
    made = FakeGatewayProcess(api.node.path)
    made.greet()
    api.node.capture(gateway_workload())
    await wait_until_async(lambda: UID in made.listeners, "the pod")
    yield made
    made.close()


async def test_list_has_pods_processes_and_rejections(
    api: Api, process: FakeGatewayProcess
) -> None:
    bad = RejectedResource("type.googleapis.com/envoy.config.cluster.v3.Cluster", "c", "no")
    process.channel.send(GatewayRejected(UID, (bad,)))
    await wait_until_async(lambda: api.node.rejected.of_pod(UID), "the report")
    _, text = await api.request("/v1/gateways")
    assert '"workload":"shop/waypoint-0"' in text
    assert '"rejected":[{"type":"Cluster","name":"c","message":"no"}]' in text
    assert '"problem":""' in text
    assert '"version":"1"' in text


async def test_metrics_count_pods_and_rejections(api: Api, process: FakeGatewayProcess) -> None:
    api.node.capture(gateway_workload("late"), netns="b")
    api.node.pods.pods()[1].listeners.clear()
    process.channel.send(GatewayRejected(UID, (RejectedResource("t", "c", "no"),)))
    await wait_until_async(lambda: api.node.rejected.of_pod(UID), "the report")
    snapshot = Snapshot()
    GatewayViews(api.node.pods, api.node.sessions, api.node.rejected, api.node.queries).add_metrics(
        snapshot
    )
    page = render(snapshot, "")[0].decode()
    assert "ztunnel_gateway_processes 1.0" in page
    assert 'ztunnel_gateway_pods{state="served"} 1.0' in page
    assert 'ztunnel_gateway_pods{state="waiting"} 1.0' in page
    assert 'ztunnel_gateway_rejected_resources{pod="shop/waypoint-0"} 1.0' in page


async def test_view_is_passed_on_unchanged(api: Api, process: FakeGatewayProcess) -> None:
    request = asyncio.create_task(api.request("/v1/gateway?pod=shop/waypoint-0&view=clusters"))
    await wait_until_async(lambda: process.of(GatewayQuery), "the query")
    (query,) = process.of(GatewayQuery)
    assert (query.pod_uid, query.view, query.log_level) == (UID, GatewayView.CLUSTERS, "")
    process.channel.send(GatewayReply(query.id, b'{"cluster_statuses": []}'))
    assert await request == (200, '{"cluster_statuses": []}')


async def test_log_level_is_set_by_patch_only(api: Api, process: FakeGatewayProcess) -> None:
    path = "/v1/gateway?pod=shop/waypoint-0&view=log&log=debug"
    for method, level in (("GET", ""), ("PATCH", "debug")):
        request = asyncio.create_task(api.request(path, method))
        await wait_until_async(lambda: process.of(GatewayQuery), "the query")
        query = process.of(GatewayQuery)[-1]
        process.messages.clear()
        assert (query.view, query.log_level) == (GatewayView.LOG, level)
        process.channel.send(GatewayReply(query.id, b"{}"))
        assert await request == (200, "{}")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/gateway?pod=shop/waypoint-0&view=secrets", 400, "the views are config_dump"),
        ("/v1/gateway?pod=shop/web&view=xds", 404, "'shop/web' is not a gateway pod"),
        ("/v1/gateway", 400, "is not a view"),
    ],
)
async def test_invalid_requests(
    api: Api, process: FakeGatewayProcess, path: str, status: int, text: str
) -> None:
    found = await api.request(path)
    assert found[0] == status
    assert text in found[1]
    assert process.of(GatewayQuery) == []


async def test_public_ports_are_those_of_the_pod(api: Api) -> None:
    workload = gateway_workload()
    api.node.capture(workload)
    api.admitted = {
        OpenPort(workload.addresses[0], 443, "TCP"): 7,
        OpenPort("192.0.2.1", 80, "TCP"): 1,
    }
    _, text = await api.request("/v1/gateways")
    port = f'{{"address":"{workload.addresses[0]}","port":443,"protocol":"TCP","admitted":7}}'
    assert f'"public_ports":[{port}]' in text


async def test_without_a_process_the_reason_is_stated(api: Api) -> None:
    api.node.capture(gateway_workload())
    _, text = await api.request("/v1/gateways")
    assert '"problem":"no gateway process is connected"' in text
    status, text = await api.request("/v1/gateway?pod=shop/waypoint-0&view=xds")
    assert (status, "hint: start `ztunnel gateway`" in text) == (404, True)
