# SPDX-License-Identifier: Apache-2.0
"""Selects the DestinationRule of a service.

As in Istio: rules of the client's namespace, which is the waypoint's, then of the service's, then
of the root namespace. In a namespace, the most specific host applies. Rules of the same host are
merged: the oldest one's settings, and the subsets of all.
"""

from __future__ import annotations

from dataclasses import replace

from ztunnel.l7.api.istio.destination_rule import DestinationRule, parse_destination_rule
from ztunnel.l7.api.istio.values import host_matches, is_exported
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.problems import Problem, Severity
from ztunnel.mesh.model import Service

KIND = "DestinationRule"


def find_rule(inputs: Inputs, gateway: str, service: Service) -> DestinationRule | None:
    """Return the rule that applies to requests from a gateway to a service."""
    rules = applicable_rules(inputs, gateway, service)
    return _merged(rules) if rules else None


def applicable_rules(inputs: Inputs, gateway: str, service: Service) -> list[DestinationRule]:
    """Return the rules that are merged for a service, in no order."""
    own = gateway.partition("/")[0]
    for namespace in dict.fromkeys((own, service.namespace, inputs.settings.root_namespace)):
        rules = [
            rule
            for obj in inputs.store.of_namespace(KIND, namespace)
            for rule in [parse_destination_rule(obj, inputs.settings.cluster_domain)]
            if rule.host
            and host_matches(rule.host, service.hostname)
            and is_exported(rule.export_to, namespace, own)
        ]
        if rules:
            host = max((rule.host for rule in rules), key=_specificity)
            return [rule for rule in rules if rule.host == host]
    return []


def _specificity(host: str) -> tuple[bool, int]:
    return (not host.startswith("*"), len(host))


def _merged(rules: list[DestinationRule]) -> DestinationRule:
    first, *others = sorted(rules, key=lambda rule: rule.obj.age_rank)
    for other in others:
        subsets = {**other.subsets, **first.subsets}
        problems = list(other.problems)
        if other.policy.sections or other.policy.ports:
            problems.append(_conflict(other, first))
        first = replace(
            first,
            subsets=subsets,
            problems=(*first.problems, *problems),
            error=first.error or other.error,
        )
    return first


def _conflict(rule: DestinationRule, older: DestinationRule) -> Problem:
    return Problem(
        kind=KIND,
        namespace=rule.obj.namespace,
        name=rule.obj.name,
        field="spec.trafficPolicy",
        message=f"{older.obj.name} is older and has the same host; only the subsets are used",
        severity=Severity.IGNORED,
        reason="Conflicted",
    )
