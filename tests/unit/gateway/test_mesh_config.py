# SPDX-License-Identifier: Apache-2.0
"""The gateway process follows the file with Istio's MeshConfig."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.envoy.security.rig import authorization_policy, target
from tests.support.waiting import wait_until_async
from tests.support.waypoint.world import GATEWAY, World
from ztunnel.gateway.compiler import Compiled, ConfigCompiler, MeshConfigChanged
from ztunnel.gateway.mesh_config import MAX_BYTES, MeshConfigError, MeshConfigFile, parse
from ztunnel.gateway.state import GatewayState
from ztunnel.gateway.xds import descriptors
from ztunnel.gateway.xds.resources import CLUSTER
from ztunnel.l7.security.custom import PROVIDER_NOT_FOUND
from ztunnel.mesh.model import Service, ServicePort


def test_changes_are_reported_once_and_invalid_content_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mesh"
    seen: list[object] = []
    file = MeshConfigFile(path, seen.append)
    file.poll()
    path.write_text("extensionProviders: []")
    file.poll()
    file.poll()
    path.write_text("a: [")
    file.poll()
    path.write_text("accessLogFile: /dev/stdout")
    file.poll()
    path.unlink()
    file.poll()
    assert seen == [{}, {"extensionProviders": []}, {"accessLogFile": "/dev/stdout"}, {}]


@pytest.mark.parametrize(
    "text", [b"[1]", b"{", b"\xff\xfe\x00", b" " * (MAX_BYTES + 1), b"a: &a [*a"]
)
def test_content_that_is_no_mapping_is_rejected(text: bytes) -> None:
    with pytest.raises(MeshConfigError):
        parse(text)


async def test_change_of_the_mesh_config_compiles_authorizers() -> None:
    """The cache of a gateway's compiler does not know the settings: it must be replaced."""
    world = World()
    world.service("web")
    world.mesh.put(
        Service(
            namespace="default",
            name="authz",
            vips=("10.96.9.9",),
            hostname="authz.default.svc.cluster.local",
            ports=(ServicePort(9000, "grpc"),),
        )
    )
    world.add(
        authorization_policy(
            "p", [{}], "CUSTOM", provider={"name": "a"}, target=target("Service", "web")
        )
    )
    state = GatewayState()
    state._mesh, state._l7 = world.mesh.state, world.store
    published: list[Compiled] = []
    compiler = ConfigCompiler(
        descriptors.load(), state, lambda: [GATEWAY], lambda _, found: published.append(found)
    )
    running = asyncio.create_task(compiler.run())
    provider = {"service": "authz.default.svc.cluster.local", "port": 9000}
    config = {"extensionProviders": [{"name": "a", "envoyExtAuthzGrpc": provider}]}
    try:
        for change, expected in (({}, False), (config, True), ({}, False)):
            published.clear()
            compiler.add(MeshConfigChanged(change))
            await wait_until_async(lambda: published, "the configuration")
            assert ("ext-authz|a" in published[-1].config[CLUSTER]) is expected
            reasons = {problem.reason for problem in published[-1].problems}
            assert (PROVIDER_NOT_FOUND in reasons) is not expected
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
