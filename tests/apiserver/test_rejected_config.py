# SPDX-License-Identifier: Apache-2.0
"""What an Envoy rejects becomes the status of the route: a real Envoy and a real API server.

    HTTPRoute ─▶ agent's view ─▶ `ztunnel gateway` ─▶ Envoy: NACK
        ▲                                               │
        └── condition ◀─ controller ◀─ annotation ◀─ agent

Compiled routes are valid for Envoy, as far as known. The test therefore makes the compiler
defective for one value of the route.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.apiserver.test_l7_status import GATEWAY, parents, put, read, ready, service, waypoint
from tests.support.apiserver.control_plane import ControlPlane, manifests, wait_until
from tests.support.apiserver.gateway_crds import install_crds
from tests.support.apiserver.server import ApiServer
from tests.support.gateway_fakes import GatewayNode, gateway_workload
from tests.support.ports import free_ports
from tests.support.waiting import wait_until_async
from tests.support.waypoint.client import request
from tests.support.waypoint.dynamic_envoy import at_port, dynamic_envoy
from ztunnel.agent.gateways.rejections import run_rejection_writer
from ztunnel.gateway import compiler
from ztunnel.gateway.process import GatewayProcess
from ztunnel.gateway.xds import descriptors
from ztunnel.ipc.gateway_messages import GatewayListenerKind
from ztunnel.kube.client.access import Access
from ztunnel.kube.sources.api_server import ApiServerSource, watched_resources
from ztunnel.l7.compile import GatewayCompiler
from ztunnel.l7.config import GatewayConfig, Json
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.names import TypeUrl

NODE, POD = "n1", "way-1"
FIRST, BROKEN, FIXED = "first.example", "broken.example", "fixed.example"
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def mesh(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A server with a controller, the waypoint `shop/way`, its pod, and the Service `shop/web`."""
    with ApiServer(tmp_path_factory.mktemp("rejected"), binaries) as server:
        install_crds(server)
        made = ControlPlane(server)
        server.apply(*manifests("agent-read.yaml", "agent-guard.yaml", "controller-guard.yaml"))
        with made.controller("one"):
            made.namespace("shop")
            put(made, "Gateway", "shop", "way", waypoint())
            ready(made, "shop")
            made.pod("shop", POD, node=NODE)
            label = f"{GATEWAY}/gateway-name=way"
            made.server.kubectl("-n", "shop", "label", "pod", POD, label)
            service(made, "web", {"istio.io/use-waypoint": "way"})
            yield made


def defective(port: int) -> type[GatewayCompiler]:
    """A compiler whose routes to BROKEN are invalid. The waypoint's listener is at `port`."""

    class Defective(GatewayCompiler):
        def compile(self, inputs: Inputs) -> GatewayConfig:
            found = super().compile(inputs)
            resources = dict(at_port(found, port))
            resources[TypeUrl.ROUTE] = {
                name: _spoiled(config) if BROKEN in json.dumps(config) else config
                for name, config in resources[TypeUrl.ROUTE].items()
            }
            return GatewayConfig(resources, found.problems)

    return Defective


def _spoiled(config: Json) -> Json:
    nameless = {"name": "", "present_match": True}  # Envoy requires a name, the API does not
    hosts = [
        {
            **host,
            "routes": [
                {**each, "match": {**each["match"], "headers": [nameless]}}
                for each in host["routes"]
            ],
        }
        for host in config["virtual_hosts"]
    ]
    return {**config, "virtual_hosts": hosts}


def listeners(netns_fd: int, *, ipv6: bool) -> dict[GatewayListenerKind, socket.socket]:
    """At free ports: all pods share the network namespace of the test."""
    return {
        kind: socket.create_server(("127.0.0.1", 0))
        for kind in (GatewayListenerKind.XDS4, GatewayListenerKind.METRICS4)
    }


@contextlib.asynccontextmanager
async def running(mesh: ControlPlane, directory: Path) -> AsyncIterator[GatewayNode]:
    """The parts of a node that take part, with the permissions of its agent, until the end."""
    access = Access(mesh.agent(NODE))
    node = GatewayNode(directory)
    node.kernel.gateway_listeners = listeners  # type: ignore[method-assign]
    source = ApiServerSource(access, watched_resources(NODE), node.view, node.publisher.publish)
    process, stop = GatewayProcess(descriptors.load(), node.path), asyncio.Event()
    tasks = [
        asyncio.create_task(each)
        for each in (
            source.run(),
            process.run(stop),
            run_rejection_writer(access, NODE, node.view, node.pods, node.rejected),
        )
    ]
    uid = (await asyncio.to_thread(read, mesh, "pod", POD))["metadata"]["uid"]
    try:
        node.capture(msgspec.structs.replace(gateway_workload(POD, "shop/way"), pod_uid=uid))
        yield node
        assert [task for task in tasks if task.done()] == []
    finally:
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        node.close()


def redirect_to(mesh: ControlPlane, host: str) -> None:
    """Apply the route: it needs no backend."""
    parent = {"group": "", "kind": "Service", "name": "web", "port": 80}
    action = {"type": "RequestRedirect", "requestRedirect": {"hostname": host}}
    spec = {"parentRefs": [parent], "rules": [{"filters": [action]}]}
    put(mesh, "HTTPRoute", "shop", "web", spec)


def conditions(mesh: ControlPlane) -> dict[str, tuple[str, str]]:
    found = parents(mesh, "httproute", "web")
    return found[0] if found else {}


def annotation(mesh: ControlPlane) -> str:
    annotations: dict[str, str] = read(mesh, "pod", POD)["metadata"].get("annotations") or {}
    return annotations.get("ztunnel.dev/rejected-config", "")


async def test_rejected_route_keeps_its_last_version_and_states_the_message(
    mesh: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr(compiler, "GatewayCompiler", defective(port))
    vip = (read(mesh, "service", "web")["spec"]["clusterIP"], 80)

    def location() -> str:
        try:
            return request(port, vip).headers.get("location", "")
        except OSError as error:
            return str(error)

    async def until(call: Any, what: str) -> None:
        await asyncio.to_thread(wait_until, call, what)

    redirect_to(mesh, FIRST)
    async with running(mesh, tmp_path) as node:
        (pod,) = node.pods.pods()
        await wait_until_async(lambda: bool(pod.listeners), "the listeners", TIMEOUT_S)
        xds = pod.listeners[GatewayListenerKind.XDS4].getsockname()[1]
        context = dynamic_envoy(tmp_path, xds, "shop/way", port)
        await asyncio.to_thread(context.__enter__)
        try:
            await until(lambda: FIRST in location(), "the first version applies")
            assert annotation(mesh) == ""

            await asyncio.to_thread(redirect_to, mesh, BROKEN)
            await until(lambda: "PartiallyInvalid" in conditions(mesh), "the condition")
            assert conditions(mesh)["PartiallyInvalid"] == ("True", "RejectedByProxy")
            assert conditions(mesh)["Accepted"][0] == "True"
            status = json.dumps(read(mesh, "httproute", "web")["status"])
            assert "Match.Headers[0].Name: value length must be at least 1" in status
            assert "shop/web|80" in annotation(mesh)
            assert FIRST in await asyncio.to_thread(location)

            await asyncio.to_thread(redirect_to, mesh, FIXED)
            await until(lambda: FIXED in location(), "the fixed version applies")
            await until(lambda: "PartiallyInvalid" not in conditions(mesh), "the condition is gone")
            await until(lambda: annotation(mesh) == "", "the annotation is gone")
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
