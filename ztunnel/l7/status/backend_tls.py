# SPDX-License-Identifier: Apache-2.0
"""`status.ancestors` of BackendTLSPolicy: the waypoints that apply it.

Accepted      True Accepted; False Invalid, or NoValidCACertificate
ResolvedRefs  True ResolvedRefs; False InvalidKind: waypoints use the system's CAs only
"""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.status.conditions import Condition
from ztunnel.l7.status.entries import Entry
from ztunnel.l7.status.policies import problem_text

_CA_FIELDS = ("caCertificateRefs", "wellKnownCACertificates")


def backend_tls_entries(
    inputs: Inputs, policy: L7Object, problems: Sequence[Problem]
) -> list[Entry]:
    """Return an entry per waypoint of the targeted services; none if they use no waypoint."""
    targets = policy.spec.get("targetRefs")
    waypoints: dict[str, None] = {}
    for ref in targets if isinstance(targets, list) else ():
        if isinstance(ref, dict) and ref.get("kind") == "Service":
            service = inputs.mesh.service(f"{policy.namespace}/{ref.get('name')}")
            if service is not None and service.waypoint:
                waypoints[service.waypoint] = None
    conditions = _conditions(problems)
    return [Entry(_gateway(waypoint), conditions) for waypoint in waypoints]


def _conditions(problems: Sequence[Problem]) -> tuple[Condition, ...]:
    errors = [each for each in problems if each.severity is Severity.ERROR]
    if not errors:
        return (
            Condition("Accepted", True, "Accepted", problem_text(problems)),
            Condition("ResolvedRefs", True, "ResolvedRefs"),
        )
    text = problem_text(errors)
    if any(field in text for field in _CA_FIELDS):
        return (
            Condition("Accepted", False, "NoValidCACertificate", text),
            Condition("ResolvedRefs", False, "InvalidKind", text),
        )
    return (
        Condition("Accepted", False, "Invalid", text),
        Condition("ResolvedRefs", True, "ResolvedRefs"),
    )


def _gateway(key: str) -> dict[str, str]:
    namespace, _, name = key.partition("/")
    return {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "namespace": namespace,
        "name": name,
    }
