# SPDX-License-Identifier: Apache-2.0
"""The inbound connections that policy admitted, with what policy decided on.

After a policy change, every admitted connection is authorized again and terminated if denied.

    admit: registered ─▶ authorized ─▶ allowed: stays until `remove`
                                   └▶ denied: removed
    recheck, after every change: pending ─▶ authorized again ─▶ denied: `deny` terminates it
                                    └▶ not authorized again within MAX_RECHECK_S: terminated

Rechecks run in slices, so that they delay neither other connections nor the worker's heartbeat.
The workloads take turns: expensive policies of one workload do not delay the others. A slice uses
the latest state; a further change continues where the previous recheck stopped.

A connection is registered before it is authorized, so a change in between cannot miss it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from ztunnel.mesh.policy.engine import Cause, Decision
from ztunnel.mesh.policy.match_terms import AuthzRequest
from ztunnel.mesh.routing.decisions import Accept
from ztunnel.mesh.state import MeshState

SLICE_S = 0.001  # of a turn of the event loop
MAX_RECHECK_S = 30.0  # then a connection that is still pending is terminated
_CONNECTIONS_PER_CLOCK = 32  # connections between two reads of the clock, if decisions are cached

Defer = Callable[[Callable[[], None]], None]
_OVERDUE = Decision(False, Cause.OVERDUE, f"{Cause.OVERDUE}: policy was not evaluated in time")


class AdmittedConnection(Protocol):
    """A connection that policy admitted."""

    def deny(self, decision: Decision) -> None:
        """Terminate it: policy now denies it."""


_Waiting = OrderedDict[AdmittedConnection, float]  # since when, monotonic seconds; oldest first


class AdmissionTable:
    """The admitted connections to the pods of one worker.

    `defer` schedules a call in the next turn of the event loop; `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        defer: Defer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._defer = defer
        self._clock = clock
        # Each connection's Workload.uid and request.
        self._admitted: dict[AdmittedConnection, tuple[str, AuthzRequest]] = {}
        self._pending: OrderedDict[str, _Waiting] = OrderedDict()  # by Workload.uid, in turn
        self._decisions: dict[tuple[str, AuthzRequest], Decision] = {}  # of `_mesh`
        self._mesh: MeshState | None = None
        self._is_scheduled = False

    def __len__(self) -> int:
        return len(self._admitted)

    @property
    def pending(self) -> int:
        """The number of connections that wait for a recheck, at most."""
        return sum(map(len, self._pending.values()))

    def admit(
        self, mesh: MeshState, connection: AdmittedConnection, accepted: Accept, identity: str
    ) -> Decision:
        """Authorize a connection. `identity` is the peer's proven identity; empty: plaintext."""
        request = AuthzRequest(accepted.client.ip, identity, accepted.destination, accepted.udp)
        self._admitted[connection] = accepted.workload.uid, request
        decision = mesh.policies.decide(accepted.workload, request)
        if not decision.allowed:
            self.remove(connection)
        return decision

    def remove(self, connection: AdmittedConnection) -> None:
        """Remove a connection that closed, if it is there."""
        admitted = self._admitted.pop(connection, None)
        if admitted is not None:
            pending = self._pending.get(admitted[0])
            if pending is not None:
                pending.pop(connection, None)

    def recheck(self, mesh: MeshState) -> None:
        """Authorize all connections again, equal requests once, beginning with a slice now.

        Connections to a deleted workload are skipped: the agent removes its pod.
        """
        self._mesh = mesh
        self._decisions.clear()
        now = self._clock()
        for connection, (uid, _) in self._admitted.items():
            waiting = self._pending.get(uid)
            if waiting is None:
                waiting = self._pending[uid] = OrderedDict()
            waiting.setdefault(connection, now)
        if not self._is_scheduled:
            self._run_slice()

    def _run_slice(self) -> None:
        self._is_scheduled = bool(self._pending)
        until = self._clock() + SLICE_S
        try:
            while self._pending and self._recheck_some(until):
                pass
        finally:  # a connection that fails to close must not stop the others' recheck
            self._is_scheduled = bool(self._pending)
            if self._is_scheduled:
                self._defer(self._run_slice)
            else:
                self._decisions.clear()

    def _recheck_some(self, until: float) -> bool:
        """Recheck connections of the next workload; returns whether the slice has time left."""
        uid, waiting = self._pending.popitem(last=False)
        now = self._clock()
        try:
            for _ in range(min(len(waiting), _CONNECTIONS_PER_CLOCK)):
                connection, since = waiting.popitem(last=False)
                if self._recheck_one(connection, is_overdue=now - since > MAX_RECHECK_S):
                    break  # an evaluation may have been expensive: another workload's turn
        finally:
            if waiting:
                self._pending[uid] = waiting
        return self._clock() < until

    def _recheck_one(self, connection: AdmittedConnection, *, is_overdue: bool) -> bool:
        """Recheck a connection; returns whether it required an evaluation."""
        admitted = self._admitted.get(connection)
        mesh = self._mesh
        if admitted is None or mesh is None:
            return False
        workload = mesh.workload(admitted[0])
        if workload is None:
            return False
        known = self._decisions.get(admitted)
        decision = known
        if decision is None and is_overdue:
            decision = _OVERDUE
        elif decision is None:
            decision = self._decisions[admitted] = mesh.policies.decide(workload, admitted[1])
        if not decision.allowed:
            self.remove(connection)
            connection.deny(decision)
        return known is None and not is_overdue
