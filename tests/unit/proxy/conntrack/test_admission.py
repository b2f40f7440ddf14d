# SPDX-License-Identifier: Apache-2.0
"""Rechecks of admitted connections: in slices, fair between workloads, and failing closed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.support.policies import policy
from tests.unit.mesh.builders import Delta, mesh, workload
from ztunnel.kube.objects.policies import read_authorization_policy
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy.engine import Cause, Decision, PolicyEngine
from ztunnel.mesh.policy.match_terms import AuthzRequest
from ztunnel.mesh.routing.decisions import Accept
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.conntrack.admission import MAX_RECHECK_S, SLICE_S, AdmissionTable

SLOW, FAST = workload("slow", "10.0.0.1"), workload("fast", "10.0.0.2")
DENY_ALL = read_authorization_policy(
    policy([{}], "DENY", name="deny-all", namespace="shop"), "istio-system"
).policy


@dataclass(eq=False)
class Connection:
    """Records that it was denied."""

    denied: Decision | None = None

    def deny(self, decision: Decision) -> None:
        self.denied = decision


@dataclass
class Turns:
    """A clock that evaluations advance, and the deferred calls of an event loop."""

    now: float = 0.0
    deferred: deque[Callable[[], None]] = field(default_factory=deque)

    def table(self) -> AdmissionTable:
        return AdmissionTable(self.deferred.append, lambda: self.now)

    def turn(self) -> float:
        """Run the deferred calls of one turn; returns its seconds."""
        before = self.now
        for _ in range(len(self.deferred)):
            self.deferred.popleft()()
        return self.now - before


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns()
    real = PolicyEngine.decide

    def decide(self: PolicyEngine, target: Workload, request: AuthzRequest) -> Decision:
        turns.now += 0.02 if target.name == "slow" else 0.0001
        return real(self, target, request)

    monkeypatch.setattr(PolicyEngine, "decide", decide)
    return turns


def admitted(table: AdmissionTable, state: MeshState, to: Workload, count: int) -> list[Connection]:
    """Connections from `count` addresses: no two requests are equal."""
    found = []
    for at in range(count):
        client = SocketAddress(f"10.1.{at >> 8}.{at & 255}", 40000)
        address = SocketAddress(to.addresses[0], 80)
        accept = Accept(client, address, None, to)
        found.append(Connection())
        assert table.admit(state, found[-1], accept, "").allowed
    return found


def deny_all(state: MeshState) -> None:
    state.apply(Delta(policies=(DENY_ALL,)))


def test_recheck_is_sliced_and_ends_every_denied_connection(turns: Turns) -> None:
    state, table = mesh(FAST), turns.table()
    connections = admitted(table, state, FAST, 500)
    deny_all(state)
    before = turns.now
    table.recheck(state)
    longest = turns.now - before
    assert table.pending
    while turns.deferred:
        longest = max(longest, turns.turn())
    assert longest <= SLICE_S + 0.0002
    assert all(each.denied is not None for each in connections)
    assert len(table) == table.pending == 0


def test_one_slice_has_at_most_one_expensive_evaluation(turns: Turns) -> None:
    state, table = mesh(SLOW), turns.table()
    admitted(table, state, SLOW, 50)
    table.recheck(state)
    while turns.deferred:
        assert turns.turn() <= 0.0201


def test_expensive_workload_does_not_delay_others(turns: Turns) -> None:
    state, table = mesh(SLOW, FAST), turns.table()
    admitted(table, state, SLOW, 500)
    fast = admitted(table, state, FAST, 20)
    deny_all(state)
    start = turns.now
    table.recheck(state)
    while any(each.denied is None for each in fast):
        turns.turn()
    assert turns.now - start < 0.6


def test_change_during_recheck_uses_latest_state_and_starves_no_connection(turns: Turns) -> None:
    state, table = mesh(SLOW), turns.table()
    connections = admitted(table, state, SLOW, 20)
    table.recheck(state)
    for _ in range(5):
        turns.turn()
        table.recheck(state)
    deny_all(state)
    table.recheck(state)
    while turns.deferred:
        turns.turn()
    assert all(each.denied is not None for each in connections)


def test_connection_that_is_not_rechecked_in_time_is_terminated(turns: Turns) -> None:
    state, table = mesh(SLOW), turns.table()
    connections = admitted(table, state, SLOW, 2000)
    start = turns.now
    table.recheck(state)
    while turns.deferred:
        turns.turn()
    assert turns.now - start < MAX_RECHECK_S + 1
    overdue = [each for each in connections if each.denied is not None]
    assert overdue
    assert {each.denied.cause for each in overdue if each.denied} == {Cause.OVERDUE}


def test_endless_changes_do_not_postpone_the_deadline(turns: Turns) -> None:
    state, table = mesh(SLOW), turns.table()
    connections = admitted(table, state, SLOW, 2000)
    table.recheck(state)
    start = turns.now
    while turns.now - start < MAX_RECHECK_S + 1 and turns.deferred:
        turns.turn()
        table.recheck(state)
    assert any(each.denied is not None for each in connections)


def test_closed_connection_is_not_rechecked(turns: Turns) -> None:
    state, table = mesh(SLOW), turns.table()
    connections = admitted(table, state, SLOW, 10)
    table.recheck(state)
    for each in connections:
        table.remove(each)
    deny_all(state)
    table.recheck(state)
    while turns.deferred:
        turns.turn()
    assert all(each.denied is None for each in connections)
    assert table.pending == 0
