# SPDX-License-Identifier: Apache-2.0
"""The mesh state: random deltas against a naive rebuild, and moves of addresses."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import HBONE, PLAIN, Delta, Mesh, service, workload
from ztunnel.mesh.model import Service, Workload
from ztunnel.mesh.state import MeshState

# Few of each, so that claims on the same address are common.
PODS = ("a", "b", "c", "d")
IPS = ("10.0.0.1", "10.0.0.2", "fd00::1")
VIPS = ("10.96.0.1", "10.96.0.2", "fd00:10:96::1")

workloads = st.builds(
    lambda name, ips, protocol, host_network: workload(
        name, *ips, protocol=protocol, host_network=host_network
    ),
    st.sampled_from(PODS),
    st.lists(st.sampled_from(IPS), max_size=3, unique=True),
    st.sampled_from((HBONE, PLAIN)),
    st.sampled_from((False, False, False, True)),
)
services = st.builds(
    lambda name, vips: service(name, *vips),
    st.sampled_from(PODS),
    st.lists(st.sampled_from(VIPS), max_size=2, unique=True),
)
deltas = st.builds(
    Delta,
    st.lists(workloads, max_size=3).map(tuple),
    st.lists(services, max_size=2).map(tuple),
    st.lists(st.sampled_from(PODS).map(lambda name: workload(name).uid), max_size=2).map(tuple),
    st.lists(st.sampled_from(PODS).map(lambda name: service(name).key), max_size=2).map(tuple),
)


@dataclass(frozen=True)
class Claim:
    """A claimant has claimed an address continuously since a tick."""

    ip: str
    name: str
    since: int


class Oracle:
    """A reference implementation that scans everything for each lookup."""

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}
        self.services: dict[str, Service] = {}
        self.claims: list[Claim] = []
        self.tick = 0

    def apply(self, delta: Delta) -> None:
        for uid in delta.removed_workloads:
            self.workloads.pop(uid, None)
            self.reclaim(uid, ())
        for key in delta.removed_services:
            self.services.pop(key, None)
            self.reclaim(key, ())
        for one in delta.workloads:
            self.workloads[one.uid] = one
            self.reclaim(one.uid, () if one.host_network else one.addresses)
        for other in delta.services:
            self.services[other.key] = other
            self.reclaim(other.key, other.vips)

    def reclaim(self, name: str, ips: tuple[str, ...]) -> None:
        self.tick += 1
        held = {claim.ip for claim in self.claims if claim.name == name}
        self.claims = [c for c in self.claims if c.name != name or c.ip in ips]
        self.claims += [Claim(ip, name, self.tick) for ip in ips if ip not in held]

    def latest_first(self, ip: str) -> list[str]:
        claims = [claim for claim in self.claims if claim.ip == ip]
        return [claim.name for claim in sorted(claims, key=lambda c: c.since, reverse=True)]

    def workload_at(self, ip: str) -> Workload | None:
        found = [self.workloads[uid] for uid in self.latest_first(ip)]
        return next((one for one in found if one.protocol is HBONE), found[0] if found else None)

    def service_at(self, ip: str) -> Service | None:
        return next((self.services[key] for key in self.latest_first(ip)), None)


def assert_agree(state: MeshState, oracle: Oracle) -> None:
    assert {one.uid: one for one in state.workloads()} == oracle.workloads
    assert {one.key: one for one in state.services()} == oracle.services
    for ip in IPS:
        assert state.workload_at(ip) == oracle.workload_at(ip)
    for vip in VIPS:
        assert state.service_at(vip) == oracle.service_at(vip)
    for name in PODS:
        assert state.workload(workload(name).uid) == oracle.workloads.get(workload(name).uid)
        expected = oracle.services.get(service(name).key)
        assert state.service(service(name).key) == expected
        assert state.service_by_hostname(service(name).hostname) == expected


@given(st.lists(deltas, max_size=12))
def test_any_sequence_of_deltas_equals_a_rebuild(changes: list[Delta]) -> None:
    state, oracle = MeshState(), Oracle()
    for delta in changes:
        state.apply(delta)
        oracle.apply(delta)
        assert_agree(state, oracle)


@given(st.lists(deltas, max_size=12))
def test_state_is_empty_after_all_removals(changes: list[Delta]) -> None:
    state = MeshState()
    for delta in changes:
        state.apply(delta)
    state.apply(
        Delta(
            removed_workloads=tuple(one.uid for one in state.workloads()),
            removed_services=tuple(one.key for one in state.services()),
        )
    )
    for part in (state, state._workload_at, state._service_at):
        assert not [name for name in dir(part) if holds_something(part, name)]


def holds_something(part: object, name: str) -> bool:
    """Return whether the attribute is a non-empty dict; compiled objects have no `vars`."""
    value = None if name.startswith("__") else getattr(part, name)
    return isinstance(value, dict) and bool(value)


@given(st.permutations([*PODS]))
def test_removals_of_unknown_keys_change_nothing(names: list[str]) -> None:
    known = workload("known", "10.0.0.1")
    change = Mesh().put(known)
    change.drop(*(workload(name, "10.0.0.1") for name in names))
    change.drop(*(service(name, "10.96.0.1") for name in names))
    assert change.state.workload_at("10.0.0.1") == known


def test_pod_ip_reused_with_the_old_pods_removal_first() -> None:
    old, new = workload("old", "10.0.0.1"), workload("new", "10.0.0.1")
    change = Mesh().put(old).drop(old)
    assert change.state.workload_at("10.0.0.1") is None
    assert change.put(new).state.workload_at("10.0.0.1") == new


def test_pod_ip_reused_with_the_old_pods_removal_last() -> None:
    old, new = workload("old", "10.0.0.1"), workload("new", "10.0.0.1")
    change = Mesh().put(old).put(new)
    assert change.state.workload_at("10.0.0.1") == new
    assert change.drop(old).state.workload_at("10.0.0.1") == new


def test_late_update_of_the_old_pod_does_not_reclaim_the_address() -> None:
    old, new = workload("old", "10.0.0.1"), workload("new", "10.0.0.1")
    change = Mesh().put(old).put(new).put(old)
    assert change.state.workload_at("10.0.0.1") == new


def test_contested_address_belongs_to_the_hbone_workload() -> None:
    meshed = workload("meshed", "10.0.0.1")
    plain = workload("plain", "10.0.0.1", protocol=PLAIN)
    for first, second in ((meshed, plain), (plain, meshed)):
        change = Mesh().put(first).put(second)
        assert change.state.workload_at("10.0.0.1") == meshed
        assert change.drop(meshed).state.workload_at("10.0.0.1") == plain


def test_released_address_returns_to_the_remaining_claimant() -> None:
    first, second = workload("first", "10.0.0.1"), workload("second", "10.0.0.1")
    moved = workload("second", "10.0.0.2")
    change = Mesh().put(first, second).put(moved)
    assert change.state.workload_at("10.0.0.1") == first
    assert change.state.workload_at("10.0.0.2") == moved


def test_duplicate_address_is_released_without_affecting_other_claims() -> None:
    twice, other = workload("twice", "10.0.0.1", "10.0.0.1"), workload("other", "10.0.0.1")
    assert Mesh().put(twice, other).drop(twice).state.workload_at("10.0.0.1") == other


def test_host_network_pod_is_never_found_by_the_nodes_address() -> None:
    node_pod = workload("node-pod", "172.30.0.1", host_network=True)
    change = Mesh().put(node_pod)
    assert change.state.workload_at("172.30.0.1") is None
    assert change.state.workload(node_pod.uid) == node_pod
    assert change.drop(node_pod).state.workload(node_pod.uid) is None


def test_pod_that_becomes_host_network_releases_its_address() -> None:
    change = Mesh().put(workload("a", "10.0.0.1"))
    change.put(workload("a", "10.0.0.1", host_network=True))
    assert change.state.workload_at("10.0.0.1") is None


def test_pod_in_both_lists_of_a_delta_exists_afterwards() -> None:
    again = workload("a", "10.0.0.2")
    state = Mesh().put(workload("a", "10.0.0.1")).state
    state.apply(Delta(workloads=(again,), removed_workloads=(again.uid,)))
    assert state.workload_at("10.0.0.1") is None
    assert state.workload_at("10.0.0.2") == again


def test_service_vip_moves_with_an_update() -> None:
    moved = service("web", "10.96.0.2")
    state = Mesh().put(service("web", "10.96.0.1")).put(moved).state
    assert state.service_at("10.96.0.1") is None
    assert state.service_at("10.96.0.2") == moved


def test_vip_taken_over_by_another_service_survives_the_late_removal_of_the_first() -> None:
    old, new = service("old", "10.96.0.1"), service("new", "10.96.0.1")
    assert Mesh().put(old).put(new).drop(old).state.service_at("10.96.0.1") == new


def test_vip_survives_a_late_update_and_removal_of_its_former_service() -> None:
    old, new = service("old", "10.96.0.1"), service("new", "10.96.0.1")
    change = Mesh().put(old).put(new).put(old)
    assert change.state.service_at("10.96.0.1") == new
    assert change.drop(old).state.service_at("10.96.0.1") == new


def test_headless_service_is_found_only_by_name() -> None:
    headless = service("db")
    state = Mesh().put(headless).state
    assert state.service_by_hostname("db.shop.svc.cluster.local") == headless
    assert state.service("shop/db") == headless
