# SPDX-License-Identifier: Apache-2.0
"""Which destinations are recent, so that their waypoint's Envoy may not know them yet."""

from __future__ import annotations

import msgspec

from ztunnel.ipc.messages import MeshDelta
from ztunnel.mesh.model import Service, ServicePort, Workload
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.conntrack import recent_destinations
from ztunnel.proxy.conntrack.recent_destinations import RECENT_S, RecentDestinations

SHOP = Service(
    namespace="shop",
    name="web",
    vips=("10.96.0.1", "fd00:96::1"),
    ports=(ServicePort(80),),
    waypoint="shop/wp",
)
POD = Workload(
    uid="c//Pod/shop/web",
    pod_uid="u",
    name="web",
    namespace="shop",
    service_account="web",
    node="n",
    addresses=("10.1.0.1",),
)


class World:
    def __init__(self) -> None:
        self.mesh = MeshState()
        self.recent = RecentDestinations()

    def apply(self, *values: Service | Workload, now: float) -> None:
        delta = MeshDelta(
            revision=1,
            services=tuple(each for each in values if isinstance(each, Service)),
            workloads=tuple(each for each in values if isinstance(each, Workload)),
        )
        self.recent.note(self.mesh, delta, now)
        self.mesh.apply(delta)

    def contains(self, now: float, ip: str = "10.96.0.1") -> bool:
        return self.recent.contains(ip, now)


def test_new_service_is_recent_for_a_while() -> None:
    world = World()
    world.apply(SHOP, now=100)
    assert world.contains(100)
    assert world.contains(100, "fd00:96::1")
    assert world.contains(100 + RECENT_S - 1)
    assert not world.contains(100 + RECENT_S)


def test_only_changes_that_envoy_must_learn_count() -> None:
    world = World()
    world.apply(msgspec.structs.replace(SHOP, waypoint=""), now=0)
    assert not world.contains(0)
    world.apply(SHOP, now=50)
    assert world.contains(50)
    world.apply(msgspec.structs.replace(SHOP, hostname="web"), now=100)
    assert not world.contains(100)
    world.apply(msgspec.structs.replace(SHOP, ports=(ServicePort(81),)), now=200)
    assert world.contains(200)


def test_pod_is_recent_when_its_waypoint_changes() -> None:
    world = World()
    world.apply(POD, now=0)
    assert not world.contains(0, "10.1.0.1")
    world.apply(msgspec.structs.replace(POD, waypoint="shop/wp"), now=100)
    assert world.contains(100, "10.1.0.1")
    world.apply(msgspec.structs.replace(POD, waypoint="shop/wp", ready=False), now=200)
    assert not world.contains(200, "10.1.0.1")


def test_number_of_recent_destinations_is_bounded() -> None:
    world = World()
    limit = recent_destinations.MAX_RECENT
    for number in range(limit + 100):
        ip = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        world.apply(msgspec.structs.replace(SHOP, name=ip, vips=(ip,)), now=1)
    assert len(world.recent._changed_at) == limit
    world.apply(SHOP, now=100)
    assert len(world.recent._changed_at) == 2  # expired ones are removed
