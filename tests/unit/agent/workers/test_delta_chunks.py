# SPDX-License-Identifier: Apache-2.0
"""Mesh state of any size is split into packets without loss."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.agent_fakes import workload
from ztunnel.agent.workers import delta_chunks
from ztunnel.ipc.messages import MeshDelta
from ztunnel.kube.objects.policies import MAX_POLICY_BYTES
from ztunnel.mesh.model import Endpoint, Service, ServicePort
from ztunnel.mesh.policy.model import (
    Action,
    Attribute,
    AuthorizationPolicy,
    Level,
    MatchTerms,
    MtlsMode,
    PeerAuthentication,
    Rule,
    Selection,
)
from ztunnel.mesh.state import MeshState

PACKET = 256 * 1024  # bytes


def _service(number: int, endpoints: int) -> Service:
    made = tuple(
        Endpoint(address=f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}", ports={"http": 8080})
        for at in range(endpoints)
    )
    return Service(namespace="shop", name=f"s{number}", endpoints=made)


def _size(delta: MeshDelta) -> int:
    return len(msgspec.msgpack.encode(delta))


def test_empty_snapshot_is_one_message() -> None:
    assert list(delta_chunks.snapshot(7, (), ())) == [
        MeshDelta(revision=7, reset=True, complete=True)
    ]


def test_settings_are_in_first_message_of_snapshot() -> None:
    workloads = [workload(f"w{number}") for number in range(3000)]
    parts = list(delta_chunks.snapshot(7, workloads, (), registry_only=True, same_node_direct=True))
    assert [part.registry_only for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.same_node_direct for part in parts] == [True] + [False] * (len(parts) - 1)
    assert len(parts) > 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 2000), max_size=12), st.integers(0, 1500))
def test_snapshot_is_split_into_packets_without_loss(sizes: list[int], count: int) -> None:
    services = [_service(number, size) for number, size in enumerate(sizes)]
    workloads = [workload(f"w{number}") for number in range(count)]
    parts = list(delta_chunks.snapshot(1, workloads, services))
    assert [part.reset for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.complete for part in parts] == [False] * (len(parts) - 1) + [True]
    assert max(map(_size, parts)) <= PACKET
    state = MeshState()
    for part in parts:
        state.apply(part)
    assert {one.uid for one in state.workloads()} == {one.uid for one in workloads}
    assert {one.key: one for one in state.services()} == {one.key: one for one in services}


def test_split_change_has_removals_first() -> None:
    delta = MeshDelta(
        revision=3,
        workloads=tuple(workload(f"w{number}") for number in range(3000)),
        removed_workloads=tuple(f"gone-{number}" * 20 for number in range(2000)),
        removed_services=("shop/old",),
    )
    parts = list(delta_chunks.change(delta))
    assert max(map(_size, parts)) <= PACKET
    assert not any(part.reset or part.complete for part in parts)
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert sum(len(part.workloads) for part in parts) == 3000
    assert sum(len(part.removed_workloads) for part in parts) == 2000
    kinds = [bool(part.workloads) for part in parts]
    assert kinds == sorted(kinds)


def test_policies_are_never_truncated() -> None:
    values = tuple(f"cluster.local/ns/n{number}/sa/account" for number in range(4000))
    rule = Rule(0, (((MatchTerms(Attribute.PRINCIPAL, values),),),))
    large = [
        AuthorizationPolicy(namespace="shop", name=f"p{number}", rules=(rule,))
        for number in range(5)
    ]
    assert MAX_POLICY_BYTES > len(msgspec.msgpack.encode(large[0])) > MAX_POLICY_BYTES // 2
    gone = tuple(f"AuthorizationPolicy/shop/gone-{number}" for number in range(3000))
    delta = MeshDelta(revision=3, policies=tuple(large), removed_policies=gone)
    for parts in (list(delta_chunks.change(delta)), list(delta_chunks.snapshot(3, (), (), large))):
        assert max(map(_size, parts)) <= PACKET
        assert [each for part in parts for each in part.policies] == large
        again = [msgspec.msgpack.decode(msgspec.msgpack.encode(p), type=MeshDelta) for p in parts]
        assert again == parts
    removed = [key for part in delta_chunks.change(delta) for key in part.removed_policies]
    assert removed == list(gone)


def test_truncated_service_has_ready_endpoints_first() -> None:
    ready = Endpoint(address="192.0.2.1", ports={"http": 80})
    tired = tuple(
        Endpoint(address=f"fd00::{at:x}", ports={"http": 80}, ready=False) for at in range(20_000)
    )
    giant = Service(namespace="shop", name="giant", endpoints=(*tired, ready))
    (part,) = delta_chunks.snapshot(1, (), [giant])
    assert _size(part) <= PACKET
    assert part.services[0].endpoints[0] == ready


def _entry_hosts(hosts: int, endpoints: int) -> list[Service]:
    """The hosts of one ServiceEntry as the view creates them: they share one tuple."""
    shared = tuple(
        Endpoint(address=f"192.0.{at >> 8}.{at & 255}", ports={"tls": 443})
        for at in range(endpoints)
    )
    return [
        Service(
            namespace="shop",
            name=f"h{at}.example.com",
            hostname=f"h{at}.example.com",
            is_service_entry=True,
            endpoints=shared,
        )
        for at in range(hosts)
    ]


def test_hosts_of_an_entry_share_their_endpoints_in_messages_and_workers() -> None:
    services = _entry_hosts(256, 1000)
    one = len(msgspec.msgpack.encode(services[0]))
    parts = list(delta_chunks.snapshot(1, (), services))
    assert max(map(_size, parts)) <= PACKET
    assert sum(map(_size, parts)) < 2 * one  # not 256 times
    received = [msgspec.msgpack.decode(msgspec.msgpack.encode(p), type=MeshDelta) for p in parts]
    expanded = [each for part in received for each in part.expanded().services]
    assert expanded == services
    assert len({id(each.endpoints) for each in expanded}) == 1


def test_truncated_entry_remains_within_a_message() -> None:
    parts = list(delta_chunks.snapshot(1, (), _entry_hosts(256, 20_000)))
    assert max(map(_size, parts)) <= PACKET
    expanded = [each for part in parts for each in part.expanded().services]
    assert len(expanded) == 256
    assert expanded[0].endpoints


def test_service_with_too_many_ports_keeps_its_address_and_has_no_port() -> None:
    """Connections to a port that a service lacks are refused, not passed through."""
    ports = tuple(ServicePort(number, f"port-{number}") for number in range(1, 60_000))
    giant = Service(namespace="shop", name="giant", vips=("10.96.0.9",), ports=ports)
    (part,) = delta_chunks.snapshot(1, (), [giant])
    assert _size(part) <= PACKET
    (sent,) = part.services
    assert (sent.vips, sent.ports) == (("10.96.0.9",), ())


def test_workload_larger_than_a_message_is_sent_without_labels() -> None:
    giant = msgspec.structs.replace(workload("w"), labels={"k": "v" * 2_000_000})
    (part,) = delta_chunks.snapshot(1, [giant], ())
    assert part.workloads == (msgspec.structs.replace(giant, labels={}),)


def test_policy_larger_than_a_message_denies_its_namespace() -> None:
    selections = tuple(Selection(uid=f"Kubernetes//Pod/shop/pod-{n}") for n in range(50_000))
    allow = AuthorizationPolicy(namespace="shop", name="a", selections=selections, rules=(Rule(0),))
    deny = msgspec.structs.replace(allow, name="d", action=Action.DENY)
    peer = PeerAuthentication(
        namespace="shop",
        name="p",
        level=Level.WORKLOAD,
        selection=Selection("shop", {"k": "v" * 2_000_000}),
        mode=MtlsMode.PERMISSIVE,
    )
    (part,) = delta_chunks.snapshot(1, (), (), [allow, deny, peer])
    assert _size(part) <= PACKET
    for policy in part.policies:
        assert "want at most" in policy.refused
    allowing, denying, strict = part.policies
    assert isinstance(allowing, AuthorizationPolicy)
    assert (allowing.selections, allowing.rules) == ((Selection("shop"),), ())
    assert isinstance(denying, AuthorizationPolicy)
    assert (denying.selections, denying.rules) == ((Selection("shop"),), (Rule(0),))
    assert isinstance(strict, PeerAuthentication)
    assert (strict.mode, strict.selection) == (MtlsMode.STRICT, Selection("shop"))
