# SPDX-License-Identifier: Apache-2.0
"""The telemetry of a destination: the defaults of the mesh, overridden by Telemetry objects.

From weak to strong, as in Istio: the object of the root namespace, that of the waypoint's
namespace, objects that select pods of an ingress gateway, objects that target the Gateway, objects
that target the Service. In the first two levels only the oldest object without a target counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ztunnel.l7.api.istio.telemetry import Telemetry, parse_telemetry
from ztunnel.l7.config import Json
from ztunnel.l7.inputs import AccessLogEncoding, Destination, Edge, Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.telemetry.mesh_config import MeshTelemetry, mesh_telemetry
from ztunnel.l7.telemetry.metrics import Metric
from ztunnel.l7.telemetry.tracing import SpanSettings

KIND = "Telemetry"


@dataclass
class Effective:
    """What applies to a destination. `tags`: the tag overrides of each metric that is enabled."""

    logs: bool
    log_encoding: AccessLogEncoding
    log_expressions: tuple[str, ...] = ()
    tags: dict[Metric, dict[str, str | None]] = field(default_factory=dict)
    spans: SpanSettings | None = None


def effective_telemetry(inputs: Inputs, destination: Destination) -> Effective:
    """Merge all objects that apply to a destination."""
    mesh = mesh_telemetry(inputs.settings)
    result = Effective(mesh.access_log, mesh.encoding, tags={metric: {} for metric in Metric})
    sampling, provider, is_disabled = mesh.sampling_percent, mesh.tracing, False
    span_tags: tuple[Json, ...] = ()
    for telemetry in _applicable(inputs, destination):
        for log in telemetry.logs:
            result.logs = not log.disabled
            result.log_expressions = (log.expression,) if log.expression else ()
        for override in telemetry.overrides:
            _override(result, override.metrics, override.disabled, override.tags)
        for entry in telemetry.tracing:
            sampling = sampling if entry.sampling_percent is None else entry.sampling_percent
            span_tags = entry.tags or span_tags
            provider = entry.provider or provider
            is_disabled = is_disabled if entry.disabled is None else entry.disabled
    if provider in mesh.collectors and not is_disabled:
        result.spans = SpanSettings(mesh.collectors[provider]["name"], sampling, span_tags)
    return result


def telemetry_problems(inputs: Inputs) -> tuple[Problem, ...]:
    """The problems of all Telemetry objects."""
    found: list[Problem] = []
    mesh = mesh_telemetry(inputs.settings)
    namespace_wide: dict[str, L7Object] = {}
    for obj in sorted(inputs.store.of_kind(KIND), key=lambda each: each.age_rank):
        telemetry = parse_telemetry(obj)
        found += telemetry.problems
        found += _tracing_problems(obj, telemetry, mesh)
        if telemetry.targets or telemetry.has_selector:
            continue
        first = namespace_wide.setdefault(obj.namespace, obj)
        if first is not obj:
            message = f"{first.name} is older and applies to the whole namespace"
            found.append(_problem(obj, Severity.IGNORED, "", message, "Conflicted"))
    return tuple(found)


def _tracing_problems(obj: L7Object, telemetry: Telemetry, mesh: MeshTelemetry) -> list[Problem]:
    names = [entry.provider for entry in telemetry.tracing if entry.provider]
    messages = [
        f"provider {name!r} is none of MeshConfig's with opentelemetry; no spans are sent"
        for name in names
        if name not in mesh.collectors
    ]
    if telemetry.tracing and not names and not mesh.tracing:
        messages.append("neither this object nor MeshConfig names a provider; no spans are sent")
    return [_problem(obj, Severity.IGNORED, "spec.tracing", message) for message in messages]


def _override(
    result: Effective,
    metrics: frozenset[str],
    disabled: bool | None,
    tags: dict[str, str | None],
) -> None:
    for metric in map(Metric, sorted(metrics)):
        if disabled:
            result.tags.pop(metric, None)
        elif disabled is False:
            result.tags.setdefault(metric, {})
        if metric in result.tags:
            result.tags[metric] = result.tags[metric] | tags


def _applicable(inputs: Inputs, destination: Destination) -> Iterator[Telemetry]:
    own, _, gateway = destination.gateway.partition("/")
    for namespace in dict.fromkeys((inputs.settings.root_namespace, own)):
        yield from [
            telemetry
            for _, telemetry in _parsed(inputs, namespace)
            if not telemetry.targets and not telemetry.has_selector
        ][:1]
    if destination.edge is not None:
        yield from _selecting(inputs, own, destination.edge)
    yield from _targeting(inputs, own, "Gateway", gateway)
    service = destination.service
    if service is not None and service.is_service_entry:
        yield from _targeting(inputs, service.namespace, "ServiceEntry", service.entry)
    elif service is not None:
        yield from _targeting(inputs, service.namespace, "Service", service.name)


def _selecting(inputs: Inputs, namespace: str, edge: Edge) -> Iterator[Telemetry]:
    """Objects that select pods of an ingress gateway."""
    for _, telemetry in _parsed(inputs, namespace):
        selector = telemetry.selector.items()
        if selector and any(selector <= labels.items() for labels in edge.labels):
            yield telemetry


def _targeting(inputs: Inputs, namespace: str, kind: str, name: str) -> Iterator[Telemetry]:
    for _, telemetry in _parsed(inputs, namespace):
        if (kind, name) in telemetry.targets:
            yield telemetry


def _parsed(inputs: Inputs, namespace: str) -> list[tuple[L7Object, Telemetry]]:
    objects = sorted(inputs.store.of_namespace(KIND, namespace), key=lambda obj: obj.age_rank)
    return [(obj, parse_telemetry(obj)) for obj in objects]


def _problem(
    obj: L7Object, severity: Severity, path: str, message: str, reason: str = "Unsupported"
) -> Problem:
    return Problem(
        kind=KIND,
        namespace=obj.namespace,
        name=obj.name,
        field=path,
        message=message,
        severity=severity,
        reason=reason,
    )
