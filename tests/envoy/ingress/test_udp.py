# SPDX-License-Identifier: Apache-2.0
"""UDP listeners of ingress gateways, with a real Envoy."""

from __future__ import annotations

import copy
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.ingress.envoy import RunningGateway, running_gateway
from tests.support.waiting import wait_until
from tests.support.waypoint.datagram_backend import DatagramBackend, exchange
from tests.support.waypoint.world import World
from ztunnel.l7.ingress.udp import MAX_DATAGRAM_BYTES
from ztunnel.l7.inputs import Settings
from ztunnel.l7.names import TypeUrl
from ztunnel.l7.problems import Severity

GATEWAY = "default/edge"
OBJECTS = """
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  gatewayClassName: ztunnel
  listeners:
  - {name: dns, port: 53, protocol: UDP}
  - {name: split, port: 54, protocol: UDP}
  - {name: partly, port: 55, protocol: UDP}
  - {name: empty, port: 56, protocol: UDP}
---
kind: UDPRoute
metadata: {name: older, namespace: default, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: edge, sectionName: dns}]
  rules: [{backendRefs: [{name: one, port: 53}]}]
---
kind: UDPRoute
metadata: {name: younger, namespace: default, creationTimestamp: "2026-01-02T00:00:00Z"}
spec:
  parentRefs: [{name: edge, sectionName: dns}]
  rules: [{backendRefs: [{name: two, port: 53}]}]
---
kind: UDPRoute
metadata: {name: split, namespace: default}
spec:
  parentRefs: [{name: edge, port: 54}]
  rules:
  - backendRefs:
    - {name: one, port: 53, weight: 3}
    - {name: two, port: 53, weight: 1}
    - {name: three, port: 53, weight: 0}
---
kind: UDPRoute
metadata: {name: partly, namespace: default}
spec:
  parentRefs: [{name: edge, port: 55}]
  rules: [{backendRefs: [{name: one, port: 53}, {name: missing, port: 53}]}]
"""
POLICY = """
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  rules: [%s]
"""


class Edge(NamedTuple):
    gateway: RunningGateway
    world: World

    def port(self, number: int) -> int:
        return self.gateway.ports[number]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    world = World()
    with ExitStack() as stack:
        for name in ("one", "two", "three"):
            backend = stack.enter_context(DatagramBackend(name))
            world.service(name, {53: ""}, [backend.port], waypoint="", transport="UDP")
        world.apply(OBJECTS)
        world.settings = Settings(access_log=True)
        directory = tmp_path_factory.mktemp("udp")
        with running_gateway(world.compile(GATEWAY), directory) as found:
            yield Edge(found, world)


def test_datagrams_of_the_oldest_route_reach_its_backend(edge: Edge) -> None:
    assert exchange(edge.port(53), b"hello") == b"one:hello"


def test_large_datagrams_are_forwarded(edge: Edge) -> None:
    data = b"x" * (MAX_DATAGRAM_BYTES - len(b"one:"))
    assert exchange(edge.port(53), data) == b"one:" + data


def test_client_keeps_its_backend(edge: Edge) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", edge.port(54)))
        found = set()
        for _ in range(20):
            sock.send(b"x")
            found.add(sock.recv(100))
    assert len(found) == 1


def test_clients_follow_the_weights(edge: Edge) -> None:
    found = Counter(exchange(edge.port(54), b"") for _ in range(200))
    assert set(found) == {b"one:", b"two:"}
    assert 110 < found[b"one:"] < 190  # of 150 expected


def test_share_of_an_invalid_backend_is_lost(edge: Edge) -> None:
    found = Counter(exchange(edge.port(55), b"", 0.2) for _ in range(40))
    assert set(found) == {b"one:", b""}
    assert 5 < found[b""] < 35
    (problem,) = [p for p in edge.world.compile(GATEWAY).problems if p.name == "partly"]
    assert problem.reason == "BackendNotFound"


def test_listener_without_route_is_not_open(edge: Edge) -> None:
    assert 56 not in edge.gateway.ports


def test_sessions_are_counted(edge: Edge) -> None:
    exchange(edge.port(53), b"hello")
    name = 'envoy_udp_downstream_sess_total{envoy_udp_prefix="ingress"}'
    wait_until(lambda: name in edge.gateway.envoy.admin_get("/stats/prometheus"))


@pytest.mark.parametrize(
    ("block", "expected"), [("127.0.0.0/8", b""), ("192.0.2.0/24", b"one:hello")]
)
def test_policy_by_client_address_is_enforced(
    edge: Edge, tmp_path: Path, block: str, expected: bytes
) -> None:
    policy = POLICY % f"{{from: [{{source: {{remoteIpBlocks: [{block}]}}}}]}}"
    config = copy.deepcopy(edge.world).apply(policy).compile(GATEWAY)
    with running_gateway(config, tmp_path) as gateway:
        assert exchange(gateway.ports[53], b"hello", 2 if expected else 0.5) == expected


def test_policy_that_udp_cannot_enforce_closes_the_listener(edge: Edge) -> None:
    rule = "{when: [{key: destination.ip, values: [10.0.0.1]}]}"
    config = copy.deepcopy(edge.world).apply(POLICY % rule).compile(GATEWAY)
    assert config.resources[TypeUrl.LISTENER] == {}
    closed = [each for each in config.problems if each.kind == "Gateway"]
    assert {each.severity for each in closed} == {Severity.ERROR}
