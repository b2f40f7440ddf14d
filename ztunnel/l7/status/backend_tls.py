# SPDX-License-Identifier: Apache-2.0
"""`status.ancestors` of BackendTLSPolicy: the waypoints and ingress gateways that apply it.

Accepted      True Accepted; False Invalid, NoValidCACertificate, or Conflicted
ResolvedRefs  True ResolvedRefs; False InvalidCACertificateRef, or InvalidKind
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.status.conditions import Condition
from ztunnel.l7.status.entries import Entry
from ztunnel.l7.status.policies import problem_text
from ztunnel.l7.traffic.backend_ca import INVALID_REF, RefError
from ztunnel.mesh.model import Service

_CA_FIELD = "caCertificateRefs"
_ENTRY = "ServiceEntry"


class PolicyUsers(NamedTuple):
    """The gateways that apply a policy, as `namespace/name`."""

    waypoints: tuple[str, ...] = ()
    ingress: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.waypoints or self.ingress)


def backend_tls_entries(
    inputs: Inputs,
    policy: L7Object,
    users: PolicyUsers,
    problems: Sequence[Problem],
    ref_errors: Sequence[RefError] = (),
) -> list[Entry]:
    """Return an entry per gateway that applies the policy."""
    winner = _preceding(inputs, policy)
    conditions = _conditions(problems, ref_errors)
    if winner is not None and conditions[0].status:
        text = f"BackendTLSPolicy {winner} has the same targets and takes precedence"
        conditions = (Condition("Accepted", False, "Conflicted", text), conditions[1])
    return [
        *(Entry(_gateway(each), conditions) for each in users.waypoints),
        *(Entry(_gateway(each), conditions, True) for each in users.ingress),
    ]


def policy_users(
    inputs: Inputs, policy: L7Object, routed: Mapping[str, Sequence[str]]
) -> PolicyUsers:
    """Return the waypoints of the targeted services, and the ingress gateways that route to them.

    `routed`: the ingress gateways by service, both as `namespace/name`.
    """
    waypoints: dict[str, None] = {}
    ingress: dict[str, None] = {}
    for kind, name, _ in _targets(policy):
        for service in _services(inputs, policy.namespace, kind, name):
            if service.waypoint:
                waypoints[service.waypoint] = None
            ingress |= dict.fromkeys(routed.get(service.key, ()))
    return PolicyUsers(tuple(waypoints), tuple(ingress))


def _services(inputs: Inputs, namespace: str, kind: str, name: str) -> list[Service]:
    """The service of a target, or the hosts of a ServiceEntry."""
    if kind == _ENTRY:
        every = inputs.mesh.services()
        return [each for each in every if (each.namespace, each.entry) == (namespace, name)]
    service = inputs.mesh.service(f"{namespace}/{name}")
    return [] if service is None or service.is_service_entry else [service]


def _preceding(inputs: Inputs, policy: L7Object) -> str | None:
    """The name of an older policy with one of the targets, if no target is left to this one."""
    targets, winner = set(_targets(policy)), None
    for other in inputs.store.of_namespace(policy.kind, policy.namespace):
        taken = targets.intersection(_targets(other))
        if other.name != policy.name and taken and other.age_rank < policy.age_rank:
            targets -= taken
            winner = winner or other.name
    return winner if not targets else None


def _targets(policy: L7Object) -> list[tuple[str, str, str]]:
    """Kinds, names and ports (empty: all) of the targeted services."""
    refs = policy.spec.get("targetRefs")
    return [
        (ref["kind"], str(ref.get("name")), str(ref.get("sectionName") or ""))
        for ref in (refs if isinstance(refs, list) else ())
        if isinstance(ref, dict) and ref.get("kind") in ("Service", _ENTRY)
    ]


def _conditions(
    problems: Sequence[Problem], ref_errors: Sequence[RefError]
) -> tuple[Condition, ...]:
    errors = [each for each in problems if each.severity is Severity.ERROR]
    text, unresolved = problem_text(errors), "; ".join(each.message for each in ref_errors)
    is_without_ca = _CA_FIELD in text
    if ref_errors:
        resolved = Condition("ResolvedRefs", False, ref_errors[0].reason, unresolved)
    elif is_without_ca:
        resolved = Condition("ResolvedRefs", False, INVALID_REF, text)
    else:
        resolved = Condition("ResolvedRefs", True, "ResolvedRefs")
    if not errors:
        accepted = Condition("Accepted", True, "Accepted", problem_text(problems))
    elif is_without_ca:
        accepted = Condition("Accepted", False, "NoValidCACertificate", unresolved or text)
    else:
        accepted = Condition("Accepted", False, "Invalid", text)
    return accepted, resolved


def _gateway(key: str) -> dict[str, str]:
    namespace, _, name = key.partition("/")
    return {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "namespace": namespace,
        "name": name,
    }
