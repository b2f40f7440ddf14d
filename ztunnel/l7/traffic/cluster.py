# SPDX-License-Identifier: Apache-2.0
"""Fields that traffic policies add to the cluster of a service port.

A policy that is invalid or cannot be honoured rejects the requests that it concerns: its cluster
has no endpoints, and Envoy responds with 503 (UH).
"""

from __future__ import annotations

from dataclasses import dataclass

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.kube.objects.l7_kinds import BACKEND_TLS_POLICY
from ztunnel.l7.api.istio.destination_rule import (
    DestinationRule,
    Sections,
    all_sections,
    effective_sections,
    parse_destination_rule,
)
from ztunnel.l7.api.istio.values import Reporter, duration
from ztunnel.l7.config import ClusterFields, Json, LocalityPolicy
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.traffic import tls as tls_fields
from ztunnel.l7.traffic.connection_pool import is_request_protocol, pool_fields
from ztunnel.l7.traffic.load_balancer import DEFAULT, balancer_fields
from ztunnel.l7.traffic.locality import locality_policy
from ztunnel.l7.traffic.merging import merge_fields
from ztunnel.l7.traffic.outlier_detection import outlier_fields
from ztunnel.l7.traffic.rules import KIND, find_rule
from ztunnel.mesh.model import Service, ServicePort

INVALID_TLS_POLICY = "InvalidCACertificateRef"  # reason of errors of BackendTLSPolicies
_NO_FIELDS = Fields({}, "")
_RAW_BUFFER: Json = {
    "name": "envoy.transport_sockets.raw_buffer",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
    },
}


@dataclass(frozen=True)
class _Translated:
    fields: Json
    locality: LocalityPolicy | None


def cluster_fields(
    inputs: Inputs,
    gateway: str,
    service: Service,
    port: ServicePort,
    subset: str = "",
    *,
    protocol: Protocol = Protocol.HTTP,
) -> ClusterFields:
    """Return the fields for requests of `gateway` to a service port."""
    rule = find_rule(inputs, gateway, service)
    policy = tls_fields.backend_tls_policy(inputs, service, port)
    problems = tls_policy_problems(policy) if policy is not None else []
    if rule is not None:
        problems += _rule_problems(rule, inputs.settings.locality, protocol)
    sections: Sections = {}
    labels: dict[str, str] = {}
    rejected = rule is not None and bool(rule.error)
    if rule is not None:
        sections = effective_sections(rule, subset, port.port)
        if subset in rule.subsets:
            labels = rule.subsets[subset].labels
    if subset and (rule is None or subset not in rule.subsets):
        rejected = True
    try:
        reporter = Reporter(policy or L7Object(kind=KIND, namespace="", name=""))
        found = _translate(
            sections, inputs.settings.locality, reporter, policy=policy, protocol=protocol
        )
    except TranslateError:
        return ClusterFields(default_fields(protocol), tuple(problems), rejected=True)
    if rule is not None and policy is not None and "tls" in sections:
        reporter = Reporter(rule.obj)
        tls_fields.report_shadowed_tls(sections["tls"], policy, reporter)
        problems += reporter.problems
    return ClusterFields(
        found.fields, tuple(problems), labels=labels, rejected=rejected, locality=found.locality
    )


def without_tls(fields: Json) -> Json:
    """Return the fields without TLS; a PROXY header stays."""
    socket = fields.get("transport_socket")
    others = {name: value for name, value in fields.items() if name != "transport_socket"}
    if socket is None or "transport_socket" not in socket["typed_config"]:
        return others
    config = {**socket["typed_config"], "transport_socket": _RAW_BUFFER}
    return {**others, "transport_socket": {**socket, "typed_config": config}}


def stream_limits(inputs: Inputs, destination: Destination) -> Json:
    """Return fields of TcpProxy that limit the time of connections to a service port."""
    service, port = destination.service, destination.port
    rule = None if service is None else find_rule(inputs, destination.gateway, service)
    if rule is None or port is None:
        return {}
    pool = effective_sections(rule, "", port.port).get("connectionPool", _NO_FIELDS)
    try:
        tcp = pool.mapping("tcp")
        limits = {
            "idle_timeout": duration(tcp, "idleTimeout", zero=True),
            "max_downstream_connection_duration": duration(tcp, "maxConnectionDuration"),
        }
    except TranslateError:
        return {}  # its cluster has no endpoints
    return {name: value for name, value in limits.items() if value}


def rule_problems(inputs: Inputs) -> tuple[Problem, ...]:
    """The problems of all DestinationRules and BackendTLSPolicies, whether or not they apply."""
    found: list[Problem] = []
    for obj in inputs.store.of_kind(KIND):
        rule = parse_destination_rule(obj, inputs.settings.cluster_domain)
        found += _rule_problems(rule, inputs.settings.locality)
    for obj in inputs.store.of_kind(BACKEND_TLS_POLICY):
        found += tls_policy_problems(obj)
    return tuple(found)


def default_fields(protocol: Protocol) -> Json:
    """Return the fields of a cluster without a traffic policy."""
    reporter = Reporter(L7Object(kind=KIND, namespace="", name=""))
    return merge_fields(DEFAULT, pool_fields(_NO_FIELDS, None, protocol, reporter))


def _translate(
    sections: Sections,
    locality: str,
    reporter: Reporter,
    *,
    policy: L7Object | None = None,
    protocol: Protocol = Protocol.HTTP,
) -> _Translated:
    is_http = is_request_protocol(protocol)
    pool, budget = sections.get("connectionPool", _NO_FIELDS), sections.get("retryBudget")
    fields = merge_fields(DEFAULT, pool_fields(pool, budget, protocol, reporter))
    if balancer := sections.get("loadBalancer"):
        fields = merge_fields(fields, balancer_fields(balancer, reporter, is_http=is_http))
    if outlier := sections.get("outlierDetection"):
        fields = merge_fields(fields, outlier_fields(outlier))
    if policy is not None:
        fields = merge_fields(fields, tls_fields.policy_tls_fields(policy, reporter))
    elif "tls" in sections:
        tls = tls_fields.rule_tls_fields(sections["tls"], reporter, is_http=is_http)
        fields = merge_fields(fields, tls)
    if "proxyProtocol" in sections:
        fields["transport_socket"] = _proxy_protocol(sections["proxyProtocol"], fields)
    found = locality_policy(balancer, locality, reporter, has_outlier_detection=outlier is not None)
    if found is not None and found.shares:
        weighted: Json = {"common_lb_config": {"locality_weighted_lb_config": {}}}
        fields = merge_fields(fields, weighted)
    return _Translated(fields, found)


def _proxy_protocol(section: Fields, fields: Json) -> Json:
    section.allow_only("version")
    version = section.string("version") or "V1"
    if version not in ("V1", "V2"):
        raise section.error("version", "V1 or V2")
    package = "envoy.extensions.transport_sockets.proxy_protocol.v3"
    return {
        "name": "envoy.transport_sockets.upstream_proxy_protocol",
        "typed_config": {
            "@type": f"type.googleapis.com/{package}.ProxyProtocolUpstreamTransport",
            "config": {"version": version},
            "transport_socket": fields.get("transport_socket", _RAW_BUFFER),
        },
    }


def _rule_problems(
    rule: DestinationRule, locality: str, protocol: Protocol = Protocol.HTTP
) -> list[Problem]:
    """What is wrong with any part of a rule, including parts that do not apply to a port."""
    reporter = Reporter(rule.obj)
    reporter.problems += rule.problems
    for sections in all_sections(rule):
        try:
            _translate(sections, locality, reporter, protocol=protocol)
        except TranslateError as error:
            message = f"{error}; the requests that it concerns are rejected"
            reporter.report(Severity.ERROR, "spec", message, "Invalid")
    return reporter.problems


def tls_policy_problems(policy: L7Object) -> list[Problem]:
    """The problems of a BackendTLSPolicy, whether or not it applies."""
    reporter = Reporter(policy)
    try:
        tls_fields.policy_tls_fields(policy, reporter)
    except TranslateError as error:
        message = f"{error}; requests to the targets are rejected"
        reporter.report(Severity.ERROR, "spec.validation", message, INVALID_TLS_POLICY)
    return reporter.problems
