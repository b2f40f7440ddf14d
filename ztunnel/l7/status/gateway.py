# SPDX-License-Identifier: Apache-2.0
"""The status of a waypoint's Gateway and of a GatewayClass.

    Accepted    the Gateway is valid
    Programmed  its pods are ready and its Service has an address
    listeners   Accepted, Conflicted, Programmed, ResolvedRefs

Routes attach to Services, so that the listeners of a waypoint have none.

Reasons are those of the Gateway API where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Severity
from ztunnel.l7.status.conditions import Condition, Json, render_conditions
from ztunnel.l7.status.facts import MAX_ADDRESSES, GatewayFacts
from ztunnel.mesh.ports import HBONE

HBONE_PROTOCOL = "HBONE"
SUPPORTED_VERSION = "v1.6"  # of the Gateway API; tests/conformance runs the suite of its last patch
VERSION_CONDITION = "SupportedVersion"  # of a GatewayClass


def gateway_status(gateway: L7Object, facts: GatewayFacts, before: Json, now: str) -> Json:
    """Return the status to apply. `before`: the current one."""
    accepted = _accepted(gateway, facts)
    programmed = _programmed(accepted, facts)
    known = {each.get("name"): each for each in _mappings(before.get("listeners"))}
    return {
        "addresses": [
            {"type": address.type.value, "value": address.value}
            for address in facts.addresses[:MAX_ADDRESSES]
        ],
        "conditions": render_conditions(
            (accepted, programmed), before.get("conditions"), gateway.generation, now
        ),
        "listeners": [
            _listener_status(gateway, listener, programmed, known.get(listener["name"], {}), now)
            for listener in _mappings(gateway.spec.get("listeners"))
            if isinstance(listener.get("name"), str)
        ],
    }


def class_conditions(controller: str, version: str = "") -> tuple[Condition, ...]:
    """The conditions of a GatewayClass that this controller serves.

    `version`: of the installed CRDs of the Gateway API, for example v1.6.3; empty if unknown.
    """
    message = f"Gateways of this class are run by {controller}"
    accepted = Condition("Accepted", True, "Accepted", message)
    if not version:
        return (accepted,)
    if version.startswith(f"{SUPPORTED_VERSION}."):
        return accepted, Condition(VERSION_CONDITION, True, VERSION_CONDITION, version)
    text = f"the Gateway API is {version}, ztunnel is tested with {SUPPORTED_VERSION}"
    return accepted, Condition(VERSION_CONDITION, False, "UnsupportedVersion", text)


def listener_problem(listener: Mapping[str, Any]) -> str:
    """Why a waypoint cannot serve a listener; empty if it can."""
    if listener.get("protocol") != HBONE_PROTOCOL:
        return (
            f"protocol {str(listener.get('protocol'))!r:.40} is not supported; "
            f"hint: a waypoint has one listener: port {HBONE}, protocol {HBONE_PROTOCOL}"
        )
    if listener.get("port") != HBONE:
        return f"port {str(listener.get('port'))!r:.20} is not {HBONE}, the port of HBONE"
    return ""


def _accepted(gateway: L7Object, facts: GatewayFacts) -> Condition:
    errors = [each for each in facts.problems if each.severity is Severity.ERROR]
    listeners = _mappings(gateway.spec.get("listeners"))
    usable = [each for each in listeners if not listener_problem(each)]
    if errors:
        text = "; ".join(f"{each.field}: {each.message}" for each in errors)
        return Condition("Accepted", False, "InvalidParameters", text)
    if gateway.spec.get("addresses"):
        message = "spec.addresses is not supported; the Service assigns the address"
        return Condition("Accepted", False, "UnsupportedAddress", message)
    if not usable:
        message = f"no listener with port {HBONE} and protocol {HBONE_PROTOCOL}"
        return Condition("Accepted", False, "ListenersNotValid", message)
    if len(usable) < len(listeners):
        message = "some listeners are not valid, see their conditions"
        return Condition("Accepted", True, "ListenersNotValid", message)
    ignored = "; ".join(f"{each.field}: {each.message}" for each in facts.problems)
    return Condition("Accepted", True, "Accepted", ignored or "the Gateway is valid")


def _programmed(accepted: Condition, facts: GatewayFacts) -> Condition:
    pods = f"{facts.ready} of {facts.wanted} pods ready"
    if facts.conflict:
        return Condition("Programmed", False, "Invalid", facts.conflict)
    if not accepted.status:
        return Condition("Programmed", False, "Invalid", "the Gateway is not accepted")
    if not facts.addresses:
        return Condition("Programmed", False, "AddressNotAssigned", "no address of the Service yet")
    if not facts.ready:
        text = "; ".join(filter(None, (pods, "connections are refused", facts.detail)))
        return Condition("Programmed", False, "Pending", text)
    return Condition("Programmed", True, "Programmed", "at least one pod is ready")


def _listener_status(
    gateway: L7Object,
    listener: Json,
    programmed: Condition,
    before: Json,
    now: str,
) -> Json:
    problem = listener_problem(listener)
    reason = "Accepted"
    if problem:
        is_protocol = listener.get("protocol") != HBONE_PROTOCOL
        reason = "UnsupportedProtocol" if is_protocol else "PortUnavailable"
    is_programmed = not problem and programmed.status
    conditions = (
        Condition("Accepted", not problem, reason, problem),
        Condition("Conflicted", False, "NoConflicts"),
        Condition(
            "Programmed", is_programmed, "Programmed" if is_programmed else "Pending", problem
        ),
        Condition("ResolvedRefs", True, "ResolvedRefs"),
    )
    return {
        "name": listener["name"],
        "attachedRoutes": 0,
        "supportedKinds": [],
        "conditions": render_conditions(
            conditions, before.get("conditions"), gateway.generation, now
        ),
    }


def _mappings(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
