# SPDX-License-Identifier: Apache-2.0
"""`status.ancestors` of BackendTLSPolicy: the waypoints that apply it.

Accepted      True Accepted; False Invalid, or NoValidCACertificate
ResolvedRefs  True ResolvedRefs; False InvalidCACertificateRef, or InvalidKind
"""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.status.conditions import Condition
from ztunnel.l7.status.entries import Entry
from ztunnel.l7.status.policies import problem_text
from ztunnel.l7.traffic.backend_ca import INVALID_REF, RefError

_CA_FIELD = "caCertificateRefs"


def backend_tls_entries(
    inputs: Inputs,
    policy: L7Object,
    problems: Sequence[Problem],
    ref_errors: Sequence[RefError] = (),
) -> list[Entry]:
    """Return an entry per waypoint of the targeted services; none if they use no waypoint."""
    conditions = _conditions(problems, ref_errors)
    return [Entry(_gateway(waypoint), conditions) for waypoint in target_waypoints(inputs, policy)]


def target_waypoints(inputs: Inputs, policy: L7Object) -> list[str]:
    """The waypoints, as `namespace/name`, of the services that a BackendTLSPolicy targets."""
    targets = policy.spec.get("targetRefs")
    waypoints: dict[str, None] = {}
    for ref in targets if isinstance(targets, list) else ():
        if isinstance(ref, dict) and ref.get("kind") == "Service":
            service = inputs.mesh.service(f"{policy.namespace}/{ref.get('name')}")
            if service is not None and service.waypoint:
                waypoints[service.waypoint] = None
    return list(waypoints)


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
