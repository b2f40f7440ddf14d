# SPDX-License-Identifier: Apache-2.0
"""The status of an ingress gateway: of the Gateway and of its ListenerSets.

    Gateway      Accepted, Programmed, the number of ListenerSets, its listeners;
                 ResolvedRefs if it has a client certificate for backends;
                 InsecureFrontendValidationMode if clients without a valid certificate are accepted
    ListenerSet  Accepted, Programmed, its listeners

Reasons are those of the Gateway API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ztunnel.l7.api.gateway import ClientValidationMode, GatewaySpec, parse_gateway
from ztunnel.l7.ingress.attachment import attached_routes, grouped
from ztunnel.l7.ingress.listeners import (
    CertificateState,
    EffectiveListener,
    backend_certificate,
    effective_listeners,
    is_set_allowed,
    listener_sets,
)
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Severity
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.status.conditions import Condition, Json, render_conditions
from ztunnel.l7.status.facts import MAX_ADDRESSES, AddressType, GatewayFacts
from ztunnel.l7.status.listeners import is_accepted, listener_conditions, listener_status
from ztunnel.l7.status.policies import problem_text
from ztunnel.l7.store import L7Store

LISTENERS_NOT_VALID = "ListenersNotValid"
BACKEND_CERTIFICATE, INSECURE = "ResolvedRefs", "InsecureFrontendValidationMode"
OPTIONAL_CONDITIONS = frozenset({BACKEND_CERTIFICATE, INSECURE})  # of a Gateway
_LISTENERS = "spec.listeners"  # where problems of single listeners are reported


class SetStatus(NamedTuple):
    """The conditions of a ListenerSet, and its listeners with theirs."""

    obj: L7Object
    conditions: tuple[Condition, ...]
    listeners: tuple[tuple[EffectiveListener, tuple[Condition, ...]], ...]

    @property
    def is_accepted(self) -> bool:
        """Whether the Gateway serves listeners of the set."""
        return self.conditions[0].status


@dataclass(frozen=True)
class IngressStatus:
    """The conditions of a Gateway and all that belongs to it.

    `routes`: how many routes are attached to a listener, by `EffectiveListener.key`.
    """

    gateway: L7Object
    conditions: tuple[Condition, ...]
    listeners: tuple[tuple[EffectiveListener, tuple[Condition, ...]], ...]
    sets: tuple[SetStatus, ...]
    addresses: tuple[Json, ...]
    routes: Mapping[tuple[str, str, str, str], int]

    def of_gateway(self, before: Json, now: str) -> Json:
        """Return the status of the Gateway to apply. `before`: the current one."""
        return {
            "addresses": list(self.addresses),
            "attachedListenerSets": sum(each.is_accepted for each in self.sets),
            "conditions": render_conditions(
                self.conditions, before.get("conditions"), self.gateway.generation, now
            ),
            "listeners": self._listeners(self.listeners, before, now),
        }

    def of_set(self, found: SetStatus, before: Json, now: str) -> Json:
        """Return the status of a ListenerSet to apply. `before`: the current one."""
        return {
            "conditions": render_conditions(
                found.conditions, before.get("conditions"), found.obj.generation, now
            ),
            "listeners": self._listeners(found.listeners, before, now),
        }

    def _listeners(
        self,
        listeners: tuple[tuple[EffectiveListener, tuple[Condition, ...]], ...],
        before: Json,
        now: str,
    ) -> list[Json]:
        current = before.get("listeners")
        known = {
            each.get("name"): each
            for each in (current if isinstance(current, list) else ())
            if isinstance(each, dict)
        }
        return [
            listener_status(
                each,
                conditions,
                self.routes.get(each.key, 0),
                known.get(each.listener.name, {}),
                now,
            )
            for each, conditions in listeners
            if each.listener.name
        ]


def ingress_status(
    store: L7Store, gateway: L7Object, facts: GatewayFacts, index: RouteIndex
) -> IngressStatus:
    """Return the status of an ingress gateway. `index` is refreshed from `store`."""
    spec = parse_gateway(gateway)
    listeners = effective_listeners(store, gateway)
    own = tuple(each for each in listeners if each.listener.owner.key == gateway.key)
    accepted = _accepted(spec, own, facts)
    programmed = _programmed(accepted, listeners, facts)
    attached = attached_routes(store, grouped(gateway, listeners), index)
    return IngressStatus(
        gateway=gateway,
        conditions=(accepted, programmed, *_optional(store, spec)),
        listeners=_with_conditions(own, facts, programmed),
        sets=_sets(store, spec, listeners, facts, (accepted, programmed)),
        addresses=tuple(
            {"type": each.type.value, "value": each.value}
            for each in facts.addresses[:MAX_ADDRESSES]
        ),
        routes={key: len(routes) for key, routes in attached.items()},
    )


def _accepted(
    spec: GatewaySpec, own: tuple[EffectiveListener, ...], facts: GatewayFacts
) -> Condition:
    errors = [each for each in facts.problems if each.severity is Severity.ERROR]
    if errors:
        return Condition("Accepted", False, "InvalidParameters", problem_text(errors))
    for address in spec.addresses:
        if address.type != AddressType.IP:
            message = (
                f"spec.addresses: type {address.type[:64]!r} is not supported; hint: use IPAddress"
            )
            return Condition("Accepted", False, "UnsupportedAddress", message)
    others = [each for each in spec.problems if not each.field.startswith(_LISTENERS)]
    valid = [each for each in own if is_accepted(each)]
    if not valid:
        message = "no listener is valid, see their conditions"
        return Condition("Accepted", False, LISTENERS_NOT_VALID, message)
    if len(valid) < len(own):
        message = "some listeners are not valid, see their conditions"
        return Condition("Accepted", True, LISTENERS_NOT_VALID, message)
    text = problem_text((*others, *facts.problems))
    return Condition("Accepted", True, "Accepted", text or "the Gateway is valid")


def _programmed(
    accepted: Condition, listeners: tuple[EffectiveListener, ...], facts: GatewayFacts
) -> Condition:
    reason, message = _obstacle(accepted, listeners, facts)
    return Condition("Programmed", not reason, reason or "Programmed", message)


def _obstacle(
    accepted: Condition, listeners: tuple[EffectiveListener, ...], facts: GatewayFacts
) -> tuple[str, str]:
    """Reason and message why a Gateway does not serve; no reason if it does."""
    pods = f"{facts.ready} of {facts.wanted} pods ready"
    pending = "; ".join(filter(None, (pods, "connections are refused", facts.detail)))
    found = (
        (facts.conflict, "Invalid", facts.conflict),
        (not accepted.status, "Invalid", "the Gateway is not accepted"),
        (facts.address_error, "AddressNotUsable", facts.address_error),
        (
            not any(each.is_usable for each in listeners),
            "Invalid",
            "no listener accepts connections, see their conditions",
        ),
        (not facts.addresses, "AddressNotAssigned", "no address of the Service yet"),
        (not facts.ready, "Pending", pending),
    )
    reasons = ((reason, message) for is_given, reason, message in found if is_given)
    return next(reasons, ("", "at least one pod is ready"))


def _optional(store: L7Store, spec: GatewaySpec) -> list[Condition]:
    """The conditions that a Gateway has only if it uses what they are about."""
    found = []
    if spec.backend_certificate is not None:
        state, message = backend_certificate(store, spec)
        is_resolved = state is CertificateState.RESOLVED
        found.append(Condition(BACKEND_CERTIFICATE, is_resolved, state.value, message))
    frontend = spec.frontend_tls
    validations = (frontend.default, *frontend.per_port.values())
    if any(v is not None and v.mode is ClientValidationMode.INSECURE_FALLBACK for v in validations):
        message = "clients without a valid certificate are accepted"
        found.append(Condition(INSECURE, True, "ConfigurationChanged", message))
    return found


def _with_conditions(
    listeners: tuple[EffectiveListener, ...], facts: GatewayFacts, programmed: Condition
) -> tuple[tuple[EffectiveListener, tuple[Condition, ...]], ...]:
    return tuple(
        (each, listener_conditions(each, facts.certificates, programmed)) for each in listeners
    )


def _sets(
    store: L7Store,
    spec: GatewaySpec,
    listeners: tuple[EffectiveListener, ...],
    facts: GatewayFacts,
    gateway: tuple[Condition, Condition],
) -> tuple[SetStatus, ...]:
    found = []
    for each in listener_sets(store, spec):
        key = each.obj.key
        own = tuple(one for one in listeners if one.listener.owner.key == key)
        is_allowed = is_set_allowed(store, spec, each)
        conditions = _set_conditions(own, gateway, is_allowed=is_allowed)
        found.append(SetStatus(each.obj, conditions, _with_conditions(own, facts, gateway[1])))
    return tuple(found)


def _set_conditions(
    own: tuple[EffectiveListener, ...], gateway: tuple[Condition, Condition], *, is_allowed: bool
) -> tuple[Condition, ...]:
    accepted, programmed = gateway
    usable = [each for each in own if each.is_usable]
    if not is_allowed:
        return _both("NotAllowed", "spec.allowedListeners of the Gateway does not admit it")
    if not accepted.status and accepted.reason != LISTENERS_NOT_VALID:
        return _both("ParentNotAccepted", f"the Gateway is not accepted: {accepted.message}")
    if not usable:
        return _both(LISTENERS_NOT_VALID, "no listener is valid, see their conditions")
    is_complete = len(usable) == len(own)
    reason = "Accepted" if is_complete else LISTENERS_NOT_VALID
    message = "" if is_complete else "some listeners are not valid, see their conditions"
    found = Condition("Accepted", True, reason, message)
    if not programmed.status:
        return found, Condition("Programmed", False, "Pending", programmed.message)
    return found, Condition("Programmed", True, "Programmed")


def _both(reason: str, message: str) -> tuple[Condition, ...]:
    return tuple(Condition(name, False, reason, message) for name in ("Accepted", "Programmed"))
