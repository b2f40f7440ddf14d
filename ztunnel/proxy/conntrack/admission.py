# SPDX-License-Identifier: Apache-2.0
"""The inbound connections that policy admitted, with what policy decided on.

After a policy change, every admitted connection is authorized again and terminated if denied.

    admit: registered ─▶ authorized ─▶ allowed: stays until `remove`
                                   └▶ denied: removed
    recheck, after every change: authorized again ─▶ denied: `deny` terminates it

A connection is registered before it is authorized, so a change in between cannot miss it.
"""

from __future__ import annotations

from typing import Protocol

from ztunnel.mesh.policy.engine import Decision
from ztunnel.mesh.policy.rule_index import AuthzRequest
from ztunnel.mesh.routing.decisions import Accept
from ztunnel.mesh.state import MeshState


class AdmittedConnection(Protocol):
    """A connection that policy admitted."""

    def deny(self, decision: Decision) -> None:
        """Terminate it: policy now denies it."""


class AdmissionTable:
    """The admitted connections to the pods of one worker."""

    def __init__(self) -> None:
        # Each connection's Workload.uid and request.
        self._admitted: dict[AdmittedConnection, tuple[str, AuthzRequest]] = {}

    def __len__(self) -> int:
        return len(self._admitted)

    def admit(
        self, mesh: MeshState, connection: AdmittedConnection, accepted: Accept, identity: str
    ) -> Decision:
        """Authorize a connection. `identity` is the peer's proven identity; empty: plaintext."""
        request = AuthzRequest(accepted.client.ip, identity, accepted.destination)
        self._admitted[connection] = accepted.workload.uid, request
        decision = mesh.policies.decide(accepted.workload, request)
        if not decision.allowed:
            self.remove(connection)
        return decision

    def remove(self, connection: AdmittedConnection) -> None:
        """Remove a connection that closed, if it is there."""
        self._admitted.pop(connection, None)

    def recheck(self, mesh: MeshState) -> None:
        """Authorize all connections again, equal requests once.

        Connections to a deleted workload are skipped: the agent removes its pod.
        """
        decisions: dict[tuple[str, AuthzRequest], Decision] = {}
        for connection, admitted in list(self._admitted.items()):
            decision = decisions.get(admitted)
            if decision is None:
                workload = mesh.workload(admitted[0])
                if workload is None:
                    continue
                decision = decisions[admitted] = mesh.policies.decide(workload, admitted[1])
            if not decision.allowed:
                self.remove(connection)
                connection.deny(decision)
