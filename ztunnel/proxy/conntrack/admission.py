# SPDX-License-Identifier: Apache-2.0
"""Who came in, and what was asked for each: so that a change of policy finds the now denied.

    admit: noted ─▶ decided ─▶ allowed: stays noted until `leave`
                            └▶ denied: forgotten
    recheck, after every change: decided again ─▶ denied: `deny` ends it

Noted before it is decided, so a change that comes in between can't miss it. One per worker.
"""

from __future__ import annotations

from typing import Protocol

from ztunnel.mesh.policy.engine import Decision
from ztunnel.mesh.policy.rule_index import AuthzRequest
from ztunnel.mesh.routing.decisions import Accept
from ztunnel.mesh.state import MeshState


class AdmittedConnection(Protocol):
    """A connection that was let in."""

    def deny(self, decision: Decision) -> None:
        """End it now: policy is against it."""


class AdmissionTable:
    """The connections that policy let in to pods of this worker."""

    def __init__(self) -> None:
        self._admitted: dict[
            AdmittedConnection, tuple[str, AuthzRequest]
        ] = {}  # by Workload.uid, and what was asked

    def __len__(self) -> int:
        return len(self._admitted)

    def admit(
        self, mesh: MeshState, connection: AdmittedConnection, accepted: Accept, identity: str
    ) -> Decision:
        """Decide on a connection of who has proven `identity` (empty: came in plaintext)."""
        asked = AuthzRequest(accepted.client.ip, identity, accepted.destination)
        self._admitted[connection] = accepted.workload.uid, asked
        decision = mesh.policies.decide(accepted.workload, asked)
        if not decision.allowed:
            self.leave(connection)
        return decision

    def leave(self, connection: AdmittedConnection) -> None:
        """It is over; one that was never let in is no error."""
        self._admitted.pop(connection, None)

    def recheck(self, mesh: MeshState) -> None:
        """Decide again on all, alike ones once. A workload that is gone is the agent's to end."""
        decided: dict[tuple[str, AuthzRequest], Decision] = {}
        for connection, question in list(self._admitted.items()):
            decision = decided.get(question)
            if decision is None:
                workload = mesh.workload(question[0])
                if workload is None:
                    continue
                decision = decided[question] = mesh.policies.decide(workload, question[1])
            if not decision.allowed:
                self.leave(connection)
                connection.deny(decision)
