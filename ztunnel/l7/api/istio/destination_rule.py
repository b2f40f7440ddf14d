# SPDX-License-Identifier: Apache-2.0
"""Parser of Istio's DestinationRule: hosts, subsets, and which settings apply to a port.

The settings themselves are validated and translated by `ztunnel.l7.traffic`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.istio.values import Reporter, host_name
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity

SECTIONS = ("loadBalancer", "connectionPool", "outlierDetection", "tls")
# Of a whole policy only: portLevelSettings cannot have them.
WHOLE_SECTIONS = ("proxyProtocol", "retryBudget")
MAX_SUBSETS = 256
MAX_PORTS = 256
Sections = dict[str, Fields]


@dataclass(frozen=True)
class Policy:
    """A trafficPolicy: settings by section, and those of single ports."""

    sections: Sections = field(default_factory=dict)
    ports: dict[int, Sections] = field(default_factory=dict)


@dataclass(frozen=True)
class Subset:
    """A part of a service's endpoints: the pods that have all of the labels."""

    labels: dict[str, str]
    policy: Policy


@dataclass(frozen=True)
class DestinationRule:
    """`host` is complete and may start with `*`. `error`: why the whole object is invalid."""

    obj: L7Object
    host: str = ""
    export_to: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)
    subsets: dict[str, Subset] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    error: str = ""


def parse_destination_rule(obj: L7Object, cluster_domain: str) -> DestinationRule:
    """Parse an object. One with an invalid host matches no service."""
    spec, reporter, host = Fields(obj.spec, "spec."), Reporter(obj), ""
    try:
        host = host_name(spec, "host", obj.namespace, cluster_domain)
        return _parse(obj, spec, host, reporter)
    except TranslateError as error:
        reporter.report(
            Severity.ERROR, "", f"{error}; requests to {host or 'no host'} are rejected", "Invalid"
        )
        problems = tuple(reporter.problems)
        return DestinationRule(obj, host, problems=problems, error=str(error))


def effective_sections(rule: DestinationRule, subset: str, port: int) -> Sections:
    """The settings of a port, or of a subset of it.

    As in Istio: a subset overrides the rule section by section; settings of a port replace all
    sections of their level.
    """
    found = _of_port(rule.policy, port)
    if subset in rule.subsets:
        policy = rule.subsets[subset].policy
        found = {**found, **policy.sections}
        if port in policy.ports:
            found = _replaced(found, policy.ports[port])
    return found


def all_sections(rule: DestinationRule) -> list[Sections]:
    """All sections of all levels, for validation."""
    policies = [rule.policy, *(subset.policy for subset in rule.subsets.values())]
    return [part for policy in policies for part in (policy.sections, *policy.ports.values())]


def _of_port(policy: Policy, port: int) -> Sections:
    return (
        _replaced(policy.sections, policy.ports[port]) if port in policy.ports else policy.sections
    )


def _replaced(whole: Sections, port: Sections) -> Sections:
    return {name: value for name, value in whole.items() if name in WHOLE_SECTIONS} | port


def _parse(obj: L7Object, spec: Fields, host: str, reporter: Reporter) -> DestinationRule:
    spec.allow_only("host", "trafficPolicy", "subsets", "exportTo", "workloadSelector")
    if spec.has("workloadSelector"):
        why = "selects sidecars; the object has no effect at waypoints"
        reporter.ignored(spec, "workloadSelector", why=why)
        return DestinationRule(obj, problems=tuple(reporter.problems))
    subsets: dict[str, Subset] = {}
    for each in spec.mappings("subsets"):
        each.allow_only("name", "labels", "trafficPolicy")
        name = each.string("name")
        if not name or name in subsets or "|" in name or len(subsets) >= MAX_SUBSETS:
            raise each.error("name", f"a name of its own; at most {MAX_SUBSETS} subsets")
        policy = _policy(each.mapping("trafficPolicy"), reporter)
        subsets[name] = Subset(each.labels("labels"), policy)
    return DestinationRule(
        obj=obj,
        host=host,
        export_to=tuple(spec.strings("exportTo")),
        policy=_policy(spec.mapping("trafficPolicy"), reporter),
        subsets=subsets,
        problems=tuple(reporter.problems),
    )


def _policy(fields: Fields, reporter: Reporter) -> Policy:
    fields.allow_only(*SECTIONS, *WHOLE_SECTIONS, "portLevelSettings", "tunnel")
    reporter.ignored(fields, "tunnel")
    ports: dict[int, Sections] = {}
    for each in fields.mappings("portLevelSettings"):
        each.allow_only(*SECTIONS, "port")
        number = each.mapping("port").port("number")
        if number is None or number in ports or len(ports) >= MAX_PORTS:
            raise each.error("port", "a number that no other entry has")
        ports[number] = _sections(each)
    return Policy(_sections(fields), ports)


def _sections(fields: Fields) -> Sections:
    names = (*SECTIONS, *WHOLE_SECTIONS)
    return {name: fields.mapping(name) for name in names if fields.has(name)}
