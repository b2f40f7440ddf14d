# SPDX-License-Identifier: Apache-2.0
"""Reports DestinationRules and VirtualServices that no waypoint uses."""

from __future__ import annotations

from ztunnel.l7.api.istio.values import Reporter
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Key
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.traffic import rules
from ztunnel.l7.traffic.virtual_service import selection

_MESSAGE = (
    "applies to no service with a waypoint; hint: the host must name one, and the object must be "
    "in the namespace of the service or of its waypoint"
)


def unused_problems(inputs: Inputs) -> tuple[Problem, ...]:
    """One problem for each object that has no effect. Reads all services."""
    used: set[L7Key] = set()
    for service in inputs.mesh.services():
        if not service.waypoint:
            continue
        for rule in rules.applicable_rules(inputs, service.waypoint, service):
            used.add(rule.obj.key)
        if selected := selection.select(inputs, service.waypoint, service):
            used |= {selected.obj.key, *(obj.key for obj in selected.shadowed)}
    found: list[Problem] = []
    for kind in (rules.KIND, selection.KIND):
        for obj in inputs.store.of_kind(kind):
            if obj.key not in used:
                reporter = Reporter(obj)
                reporter.report(Severity.IGNORED, "", _MESSAGE, "NoMatchingService")
                found += reporter.problems
    return tuple(found)
