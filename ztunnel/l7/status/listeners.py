# SPDX-License-Identifier: Apache-2.0
"""The conditions of the listeners of an ingress gateway, of a Gateway or of a ListenerSet.

    Accepted      the listener is valid and conflicts with no other
    Conflicted    another listener has its port and hostname, or its port for another protocol
    ResolvedRefs  its certificates, authorities and kinds of routes are valid
    Programmed    it accepts connections

A certificate of which the newest version is invalid has ResolvedRefs False: the listener still
serves the previous version, and remains programmed.
"""

from __future__ import annotations

from collections.abc import Mapping

from ztunnel.l7.ingress.listeners import (
    EffectiveListener,
    ListenerAccepted,
    ListenerConflict,
    ListenerResolved,
)
from ztunnel.l7.names import certificate_id
from ztunnel.l7.status.conditions import Condition, Json, render_conditions
from ztunnel.l7.status.facts import CertificateFact

Certificates = Mapping[str, CertificateFact]


def is_accepted(listener: EffectiveListener) -> bool:
    """Return whether a listener is valid and conflicts with no other."""
    is_valid = listener.accepted is ListenerAccepted.ACCEPTED
    return is_valid and listener.conflicted is ListenerConflict.NONE


def listener_conditions(
    listener: EffectiveListener, certificates: Certificates, gateway: Condition
) -> tuple[Condition, ...]:
    """Return the conditions. `gateway`: the condition Programmed of the Gateway."""
    is_conflicted = listener.conflicted is not ListenerConflict.NONE
    conflict = Condition(
        "Conflicted", is_conflicted, listener.conflicted.value, listener.conflicted_message
    )
    resolved = _resolved(listener, certificates)
    return _accepted(listener), conflict, _programmed(listener, resolved, gateway), resolved


def listener_status(
    listener: EffectiveListener,
    conditions: tuple[Condition, ...],
    routes: int,
    before: Json,
    now: str,
) -> Json:
    """Return an entry of `status.listeners`. `routes`: how many are attached."""
    return {
        "name": listener.listener.name,
        "supportedKinds": [{"group": each.group, "kind": each.kind} for each in listener.kinds],
        "attachedRoutes": routes,
        "conditions": render_conditions(
            conditions, before.get("conditions"), listener.listener.owner.generation, now
        ),
    }


def _accepted(listener: EffectiveListener) -> Condition:
    if listener.conflicted is not ListenerConflict.NONE:
        return Condition("Accepted", False, listener.conflicted.value, listener.conflicted_message)
    is_valid = listener.accepted is ListenerAccepted.ACCEPTED
    return Condition("Accepted", is_valid, listener.accepted.value, listener.accepted_message)


def _resolved(listener: EffectiveListener, certificates: Certificates) -> Condition:
    is_resolved = listener.resolved is ListenerResolved.RESOLVED
    reason, message = listener.resolved.value, listener.resolved_message
    facts = _facts(listener, certificates)
    if facts and listener.resolved in (
        ListenerResolved.RESOLVED,
        ListenerResolved.INVALID_CERTIFICATE,
    ):
        is_resolved, reason = False, ListenerResolved.INVALID_CERTIFICATE.value
        message = "; ".join(facts)
    return Condition("ResolvedRefs", is_resolved, reason, message)


def _facts(listener: EffectiveListener, certificates: Certificates) -> list[str]:
    """What is wrong with the newest version of its certificates."""
    tls = listener.listener.tls
    refs = tls.certificates if tls is not None and listener.terminates_tls else ()
    files = (f"{certificate_id(ref.kind, ref.namespace, ref.name)}.crt" for ref in refs)
    found = (certificates.get(file) for file in files)
    return [each.message for each in found if each is not None and each.error is not None]


def _programmed(listener: EffectiveListener, resolved: Condition, gateway: Condition) -> Condition:
    if listener.conflicted is not ListenerConflict.NONE:
        return Condition(
            "Programmed", False, listener.conflicted.value, listener.conflicted_message
        )
    if not is_accepted(listener):
        return Condition("Programmed", False, "Invalid", "the listener is not accepted")
    if not listener.is_usable:
        return Condition("Programmed", False, "Invalid", resolved.message)
    if not gateway.status:
        return Condition("Programmed", False, "Pending", gateway.message)
    return Condition("Programmed", True, "Programmed")
