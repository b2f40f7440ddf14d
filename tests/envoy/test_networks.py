# SPDX-License-Identifier: Apache-2.0
"""ServiceEntries with resolution NONE behind a waypoint: networks, whose addresses are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import request
from tests.support.waypoint.envoy import RunningEnvoy, running_envoy
from tests.support.waypoint.world import World

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: default}
spec:
  targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: external}]
  action: DENY
  rules: [{to: [{operation: {paths: [/admin]}}]}]
"""


@contextmanager
def serving(world: World, directory: Path) -> Iterator[RunningEnvoy]:
    config = world.compile()
    assert config.problems == ()
    with running_envoy(config, directory) as envoy:
        yield envoy


@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_connections_keep_their_destination(tmp_path: Path, protocol: str) -> None:
    world = World()
    world.service("web")  # virtual addresses beside networks
    with Backend("outside") as backend:
        networks = ("127.0.0.0/8",)
        world.entry("net", {backend.port: protocol}, vips=(), networks=networks)
        with serving(world, tmp_path) as envoy:
            for ip in ("127.0.0.1", "127.0.0.1"):
                answer = request(envoy.port, (ip, backend.port), headers={"host": "any.example"})
                assert answer.backend == "outside"
            with pytest.raises(OSError):
                request(envoy.port, ("127.0.0.1", backend.port + 1))  # no port of the entry
            with pytest.raises(OSError):
                request(envoy.port, ("198.51.100.1", backend.port))  # in no network


def test_longest_prefix_with_the_port_decides(tmp_path: Path) -> None:
    world = World().apply(POLICY)
    with Backend("outside") as backend:
        port = backend.port
        world.entry("wide", {port: "http"}, vips=(), networks=("127.0.0.0/8",))
        world.entry("narrow", {port: "http"}, vips=(), networks=("127.0.0.1/32",), entry="narrow")
        world.entry("other-port", {81: "http"}, vips=(), networks=("127.0.0.0/24",), entry="other")
        with serving(world, tmp_path) as envoy:
            # the policy is that of `wide`
            assert request(envoy.port, ("127.0.0.1", port), path="/admin").status == 200
            assert request(envoy.port, ("127.9.0.1", port), path="/admin").status == 403
            assert request(envoy.port, ("127.0.0.2", port), path="/admin").status == 403
