# SPDX-License-Identifier: Apache-2.0
"""Reports DestinationRules and VirtualServices, or parts of them, that no gateway uses."""

from __future__ import annotations

from collections.abc import Collection

from ztunnel.l7.api.istio.values import Reporter
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Key, L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.traffic import rules
from ztunnel.l7.traffic.virtual_service import selection

_MESSAGE = (
    "applies to no service with a waypoint; hint: the host must name one, and the object must be "
    "in the namespace of the service or of its waypoint"
)
_GATEWAYS = (
    "gateways other than mesh have no effect; hint: use an HTTPRoute, GRPCRoute, TLSRoute or "
    "TCPRoute with the Gateway as parent"
)


def unused_problems(inputs: Inputs, ingress: Collection[str]) -> tuple[Problem, ...]:
    """One problem for each object that has no effect. Reads all services.

    `ingress`: the ingress gateways, `namespace/name`; they may use any service.
    """
    used: set[L7Key] = set()
    for service in inputs.mesh.services():
        for gateway in ingress:
            for rule in rules.applicable_rules(inputs, gateway, service):
                used.add(rule.obj.key)
        if not service.waypoint:
            continue
        for rule in rules.applicable_rules(inputs, service.waypoint, service):
            used.add(rule.obj.key)
        if selected := selection.select(inputs, service.waypoint, service):
            used |= {selected.obj.key, *(obj.key for obj in selected.shadowed)}
    found: list[Problem] = []
    for kind in (rules.KIND, selection.KIND):
        for obj in inputs.store.of_kind(kind):
            reporter = Reporter(obj)
            if kind == selection.KIND and _names_gateways(obj):
                reporter.report(Severity.IGNORED, "spec.gateways", _GATEWAYS, "UnsupportedValue")
            elif obj.key not in used:
                reporter.report(Severity.IGNORED, "", _MESSAGE, "NoMatchingService")
            found += reporter.problems
    return tuple(found)


def _names_gateways(obj: L7Object) -> bool:
    gateways = obj.spec.get("gateways")
    return isinstance(gateways, list) and any(each != selection.MESH for each in gateways)
