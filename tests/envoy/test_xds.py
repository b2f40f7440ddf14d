# SPDX-License-Identifier: Apache-2.0
"""A real Envoy against the delta ADS server: updates, rejections, reconnects."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.envoy.traffic.worlds import destination_rule
from tests.support.ports import free_ports
from tests.support.waiting import wait_until_async
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import dial, request
from tests.support.waypoint.dynamic_envoy import at_port, dynamic_envoy
from tests.support.waypoint.envoy import RunningEnvoy
from tests.support.waypoint.world import World
from ztunnel.gateway.xds import descriptors
from ztunnel.gateway.xds.ads_server import AdsServer
from ztunnel.gateway.xds.delta import SyncState
from ztunnel.gateway.xds.resources import CLUSTER, LISTENER, ResourceEncoder
from ztunnel.l7.config import Json
from ztunnel.l7.names import TypeUrl

T = TypeVar("T")


@pytest.fixture(scope="module")
def api() -> descriptors.EnvoyApi:
    return descriptors.load()


class ControlPlane:
    """Compiles a world for one Envoy; `change` may alter the resources before they are sent."""

    def __init__(self, api: descriptors.EnvoyApi, world: World, port: int) -> None:
        self.api, self.world, self.port = api, world, port
        self.change: Callable[[dict[TypeUrl, dict[str, Json]]], None] = lambda _: None
        self.server = AdsServer(api, "pod", lambda: None)
        self.encoder = ResourceEncoder(api)
        self.xds_port = 0

    async def start(self) -> None:
        """Serve, at the same port again after `restart`."""
        sock = socket.create_server(("127.0.0.1", self.xds_port))
        sock.setblocking(False)
        self.xds_port = sock.getsockname()[1]
        await self.server.listen(sock)

    async def restart(self) -> None:
        """A new server that knows nothing of Envoy."""
        self.server.close()
        self.server = AdsServer(self.api, "pod", lambda: None)
        self.encoder = ResourceEncoder(self.api)
        await self.start()

    async def publish(self) -> None:
        """Send the configuration, and wait for Envoy's answers."""
        found = {
            url: dict(named) for url, named in at_port(self.world.compile(), self.port).items()
        }
        self.change(found)
        config, invalid = self.encoder.encode(found)
        assert invalid == []
        self.server.set_config(config)
        await self.synced()

    async def synced(self) -> None:
        await wait_until_async(lambda: self.server.is_synced, self.server.statuses)

    def rejected(self) -> dict[str, str]:
        """Envoy's messages by resource, or resource and part."""
        return {
            f"{each.name}#{each.part}" if each.part else each.name: each.message
            for _, each in self.server.rejected()
        }


async def run(call: Callable[..., T], *args: Any) -> T:
    return await asyncio.to_thread(call, *args)


@asynccontextmanager
async def running(
    api: descriptors.EnvoyApi, world: World, directory: Path
) -> AsyncIterator[tuple[ControlPlane, RunningEnvoy]]:
    (port,) = free_ports(1)
    control = ControlPlane(api, world, port)
    await control.start()
    context = dynamic_envoy(directory, control.xds_port, port=port)
    envoy = await run(context.__enter__)
    try:
        await control.publish()
        yield control, envoy
    finally:
        await run(context.__exit__, None, None, None)
        control.server.close()


async def test_new_service_is_reachable_and_removed_one_is_closed(
    api: descriptors.EnvoyApi, tmp_path: Path
) -> None:
    world = World()
    with Backend("web") as backend:
        web = world.service("web", backends=[backend.port])
        async with running(api, world, tmp_path) as (control, envoy):
            assert (await run(request, control.port, web)).backend == "web"
            late = world.service("late", backends=[backend.port])
            await control.publish()
            assert (await run(request, control.port, late)).backend == "web"
            gone = world.mesh.state.service("default/late")
            assert gone is not None
            world.mesh.drop(gone)
            await control.publish()
            with pytest.raises(OSError):
                await run(request, control.port, late)
            assert (await run(request, control.port, web)).backend == "web"
            assert await run(envoy.stat, "cluster_manager.cds.update_rejected") == 0


async def test_changed_cluster_is_in_force_at_once(
    api: descriptors.EnvoyApi, tmp_path: Path
) -> None:
    """Envoy does not wait for endpoints until a timeout of 15 s."""
    world = World()
    with Backend("web") as backend:
        web = world.service("web", backends=[backend.port])
        async with running(api, world, tmp_path) as (control, envoy):
            tls = {"mode": "SIMPLE", "sni": "web.example.com"}
            world.add(destination_rule({"tls": tls}))
            await control.publish()  # waits for at most 10 s
            assert (await run(request, envoy.port, web)).status == 503  # not a TLS server
            world.add(destination_rule({}))
            await control.publish()
            assert (await run(request, envoy.port, web)).backend == "web"


async def test_kept_connection_survives_listener_updates(
    api: descriptors.EnvoyApi, tmp_path: Path
) -> None:
    world = World()
    with Backend("web") as backend:
        web = world.service("web", backends=[backend.port])
        async with running(api, world, tmp_path) as (control, _):
            kept = http.client.HTTPConnection(*web)
            kept.sock = await run(dial, control.port, web)
            for number in range(5):
                protocol = ("http", "", "grpc", "tls", "")[number]
                world.service(f"more-{number}", {9000 + number: protocol}, [backend.port])
                await control.publish()
                await run(kept.request, "GET", "/")
                response = await run(kept.getresponse)
                assert response.status == 200
                await run(response.read)
            kept.close()


async def test_rejected_cluster_of_one_service_does_not_affect_others(
    api: descriptors.EnvoyApi, tmp_path: Path
) -> None:
    """The API accepts the resource, and only Envoy knows that it is invalid."""
    world = World()

    def spoil(found: dict[TypeUrl, dict[str, Json]]) -> None:
        clusters = found[TypeUrl.CLUSTER]
        clusters["default/bad|80"] = {**clusters["default/bad|80"], "connect_timeout": "-1s"}

    with Backend("web") as backend:
        services = [world.service(f"s{number}", backends=[backend.port]) for number in range(6)]
        async with running(api, world, tmp_path) as (control, _):
            world.service("bad", backends=[backend.port])
            late = world.service("late", backends=[backend.port])
            control.change = spoil
            await control.publish()
            assert list(control.rejected()) == ["default/bad|80"]
            assert "positive duration" in control.rejected()["default/bad|80"]
            for each in (*services, late):
                assert (await run(request, control.port, each)).backend == "web"
            control.change = lambda _: None
            await control.publish()
            assert control.rejected() == {}


def _break_chain(name: str) -> Callable[[dict[TypeUrl, dict[str, Json]]], None]:
    def change(found: dict[TypeUrl, dict[str, Json]]) -> None:
        listener = dict(found[TypeUrl.LISTENER]["waypoint"])
        broken = {"name": "none", "typed_config": {"@type": _UNKNOWN, "stat_prefix": ""}}
        listener["filter_chains"] = [
            {**chain, "filters": [broken]} if chain["name"] == name else chain
            for chain in listener["filter_chains"]
        ]
        found[TypeUrl.LISTENER] = {"waypoint": listener}

    return change


# TcpProxy requires a stat_prefix
_UNKNOWN = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"


async def test_rejected_chain_keeps_its_last_version_and_others_change(
    api: descriptors.EnvoyApi, tmp_path: Path
) -> None:
    world = World()
    with Backend("web") as backend:
        first = world.service("first", backends=[backend.port])
        second = world.service("second", backends=[backend.port])
        async with running(api, world, tmp_path) as (control, _):
            late = world.service("late", backends=[backend.port])
            control.change = _break_chain("default/first|80")
            await control.publish()
            assert list(control.rejected()) == ["waypoint#default/first|80"]
            for each in (first, second, late):
                assert (await run(request, control.port, each)).backend == "web", each
            states = {each.type_url: each.state for each in control.server.statuses()}
            assert states[LISTENER] is SyncState.REJECTED
            assert states[CLUSTER] is SyncState.SYNCED


async def test_restarted_server_sends_nothing_that_envoy_has(
    api: descriptors.EnvoyApi, tmp_path: Path
) -> None:
    world = World()
    with Backend("web") as backend:
        web = world.service("web", backends=[backend.port])
        async with running(api, world, tmp_path) as (control, envoy):
            names = (
                "cluster_manager.cds.update_success",
                "listener_manager.lds.update_success",
                "listener_manager.listener_modified",
            )
            before = [await run(envoy.stat, name) for name in names]
            await control.restart()
            await control.publish()
            assert [await run(envoy.stat, name) for name in names] == before
            assert (await run(request, control.port, web)).backend == "web"
            late = world.service("late", backends=[backend.port])
            await control.publish()
            assert (await run(request, control.port, late)).backend == "web"


async def test_envoy_that_connects_before_the_configuration_exists_waits_for_it(
    api: descriptors.EnvoyApi, tmp_path: Path
) -> None:
    world = World()
    control = ControlPlane(api, world, free_ports(1)[0])
    await control.start()
    context = dynamic_envoy(tmp_path, control.xds_port, port=control.port)
    envoy = await run(context.__enter__)
    try:
        await wait_until_async(lambda: control.server.is_connected, "the stream")
        await asyncio.sleep(0.3)
        assert (await run(envoy.admin_get, "/ready")).strip() == "PRE_INITIALIZING"
        await control.publish()  # of a gateway without destinations
        assert (await run(envoy.admin_get, "/ready")).strip() == "LIVE"
    finally:
        await run(context.__exit__, None, None, None)
        control.server.close()


async def test_counters_survive_an_update_of_the_listener(
    api: descriptors.EnvoyApi, tmp_path: Path
) -> None:
    def requests() -> list[str]:
        page = envoy.admin_get("/stats/prometheus")
        return [line for line in page.splitlines() if line.startswith("envoy_istio_requests_total")]

    world = World()
    with Backend("web") as backend:
        web = world.service("web", backends=[backend.port])
        async with running(api, world, tmp_path) as (control, envoy):
            assert (await run(request, envoy.port, web)).status == 200
            (before,) = await run(requests)
            world.apply("""
                kind: Telemetry
                metadata: {name: log, namespace: default}
                spec: {accessLogging: [{providers: [{name: envoy}]}]}
                """)
            await control.publish()
            await asyncio.sleep(1.5)  # longer than the drain of the old chains
            assert (await run(request, envoy.port, web)).status == 200
            (after,) = await run(requests)
    assert (before.rpartition(" ")[2], after.rpartition(" ")[2]) == ("1", "2")
    assert before.rpartition(" ")[0] == after.rpartition(" ")[0]
