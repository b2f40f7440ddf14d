# SPDX-License-Identifier: Apache-2.0
"""Parser of Istio's Telemetry (istio.io, "Telemetry" reference).

A field that has no effect at waypoints yields a problem. A field of the wrong type makes the
object invalid: it has no effect, and its problem states that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.istio.cel import CelError, check_expression
from ztunnel.l7.api.istio.tag_values import TagValueError, tag_value_format
from ztunnel.l7.api.istio.values import Reporter
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity

PROMETHEUS_PROVIDER = "prometheus"  # Istio's built-in provider of metrics
LOG_PROVIDER = "envoy"  # Istio's built-in provider of access logs: standard output
_GATEWAY_API = "gateway.networking.k8s.io"
_TARGETS = {("Gateway", _GATEWAY_API), ("Service", ""), ("ServiceEntry", "networking.istio.io")}
ALL_METRICS = "ALL_METRICS"
METRICS = {
    "REQUEST_COUNT": "istio_requests_total",
    "REQUEST_DURATION": "istio_request_duration_milliseconds",
    "REQUEST_SIZE": "istio_request_bytes",
    "RESPONSE_SIZE": "istio_response_bytes",
    "GRPC_REQUEST_MESSAGES": "istio_request_messages_total",
    "GRPC_RESPONSE_MESSAGES": "istio_response_messages_total",
    "TCP_OPENED_CONNECTIONS": "istio_tcp_connections_opened_total",
    "TCP_CLOSED_CONNECTIONS": "istio_tcp_connections_closed_total",
    "TCP_SENT_BYTES": "istio_tcp_sent_bytes_total",
    "TCP_RECEIVED_BYTES": "istio_tcp_received_bytes_total",
}


class Mode(StrEnum):
    """The role of the proxy to which an entry applies. A waypoint is a server, as in Istio."""

    CLIENT_AND_SERVER = "CLIENT_AND_SERVER"
    CLIENT = "CLIENT"
    SERVER = "SERVER"


class Target(NamedTuple):
    """A targetRef; the namespace is that of the object."""

    kind: str
    name: str


@dataclass(frozen=True)
class LogEntry:
    """An entry of accessLogging. None for `disabled` inherits; so does an empty expression."""

    disabled: bool | None
    expression: str


@dataclass(frozen=True)
class MetricOverride:
    """`metrics`: names of Istio's metrics. `tags`: the format of a value, None removes the tag."""

    metrics: frozenset[str]
    disabled: bool | None
    tags: dict[str, str | None]


@dataclass(frozen=True)
class TracingEntry:
    """An entry of tracing. None and empty inherit. `tags` are custom tags of Envoy."""

    provider: str
    sampling_percent: float | None
    disabled: bool | None
    tags: tuple[dict[str, object], ...] = ()


@dataclass(frozen=True)
class Telemetry:
    """The parts of a Telemetry object that concern gateways.

    `selector`: of pods; it concerns ingress gateways only. With it, or with `targets`, the object
    does not apply to its whole namespace.
    """

    targets: tuple[Target, ...] = ()
    has_selector: bool = False
    selector: dict[str, str] = field(default_factory=dict)
    logs: tuple[LogEntry, ...] = ()
    overrides: tuple[MetricOverride, ...] = ()
    tracing: tuple[TracingEntry, ...] = ()
    problems: tuple[Problem, ...] = field(default=())


def parse_telemetry(obj: L7Object) -> Telemetry:
    """Parse an object. An invalid one has no entries, only problems."""
    reader = _Reader(obj)
    try:
        return reader.read(Fields(obj.spec, "spec."))
    except TranslateError as error:
        reader.report(Severity.ERROR, "", f"{error}; the object has no effect", "Invalid")
        return Telemetry(has_selector=True, problems=tuple(reader.problems))


class _Reader(Reporter):
    """Reads a Telemetry."""

    def read(self, spec: Fields) -> Telemetry:
        spec.allow_only(
            "selector", "targetRef", "targetRefs", "tracing", "metrics", "accessLogging"
        )
        targets = [self._target(one) for one in spec.mappings("targetRefs")]
        if spec.has("targetRef"):
            targets.append(self._target(spec.mapping("targetRef")))
        has_selector = spec.has("selector")
        selector = spec.mapping("selector")
        selector.allow_only("matchLabels")
        if has_selector:
            text = "only ingress gateways whose pods it selects use it; waypoints use targetRefs"
            self.report(Severity.IGNORED, "spec.selector", text)
        return Telemetry(
            targets=tuple(targets),
            has_selector=has_selector,
            selector=selector.labels("matchLabels"),
            logs=tuple(e for one in spec.mappings("accessLogging") for e in self._log(one)),
            overrides=tuple(e for one in spec.mappings("metrics") for e in self._metrics(one)),
            tracing=tuple(e for one in spec.mappings("tracing") for e in self._tracing(one)),
            problems=tuple(self.problems),
        )

    def _target(self, one: Fields) -> Target:
        kind, group = one.string("kind"), one.string("group")
        namespace = one.string("namespace")
        if (kind, group.removeprefix("core")) not in _TARGETS:
            raise one.error("kind", "a Gateway, Service or ServiceEntry and its group")
        if namespace not in ("", self._object.namespace):
            raise one.error("namespace", "the namespace of the object")
        return Target(kind, one.string("name"))

    def _applies(self, match: Fields) -> bool:
        """Whether an entry applies to servers."""
        text = match.string("mode") or Mode.CLIENT_AND_SERVER
        if text not in set(Mode):
            raise match.error("mode", f"one of {', '.join(Mode)}")
        if text == Mode.CLIENT:
            self.report(
                Severity.IGNORED, match.path("mode"), "waypoints report as servers, not as clients"
            )
        return text != Mode.CLIENT

    def _providers(self, entry: Fields, known: str) -> bool:
        """Whether an entry concerns the one provider that exists."""
        names = [one.string("name") for one in entry.mappings("providers")]
        for name in names:
            if name != known:
                self.report(
                    Severity.IGNORED,
                    entry.path("providers"),
                    f"provider {name!r} is not supported; supported is {known!r}",
                )
        return not names or known in names

    def _log(self, entry: Fields) -> list[LogEntry]:
        entry.allow_only("match", "providers", "disabled", "filter")
        is_server = self._applies(entry.mapping("match"))
        has_provider = self._providers(entry, LOG_PROVIDER)
        disabled = entry.boolean("disabled") if entry.has("disabled") else None
        expression = entry.mapping("filter").string("expression")
        try:
            if expression:
                check_expression(expression)
        except CelError as error:
            path = entry.path("filter.expression")
            self.report(Severity.WARNING, path, f"{error}; requests are logged without this filter")
            expression = ""
        return [LogEntry(disabled, expression)] if is_server and has_provider else []

    def _metrics(self, entry: Fields) -> list[MetricOverride]:
        entry.allow_only("providers", "overrides", "reportingInterval")
        if entry.has("reportingInterval"):
            self.report(
                Severity.IGNORED,
                entry.path("reportingInterval"),
                "TCP connections are reported when they start and when they end",
            )
        found = [self._override(one) for one in entry.mappings("overrides")]
        if not self._providers(entry, PROMETHEUS_PROVIDER):
            return []
        return [one for one in found if one is not None]

    def _override(self, entry: Fields) -> MetricOverride | None:
        entry.allow_only("match", "disabled", "tagOverrides")
        match = entry.mapping("match")
        match.allow_only("metric", "customMetric", "mode")
        is_server = self._applies(match)
        tags = self._tag_overrides(entry)
        disabled = entry.boolean("disabled") if entry.has("disabled") else None
        custom = match.string("customMetric")
        if custom and custom not in METRICS.values():
            self.report(
                Severity.IGNORED, match.path("customMetric"), f"no metric {custom!r} exists"
            )
            return None
        metric = match.string("metric") or ALL_METRICS
        if metric != ALL_METRICS and metric not in METRICS:
            raise match.error("metric", f"{ALL_METRICS} or one of {', '.join(METRICS)}")
        names = METRICS.values() if metric == ALL_METRICS else [METRICS[metric]]
        metrics = frozenset([custom] if custom else names)
        return MetricOverride(metrics, disabled, tags) if is_server else None

    def _tag_overrides(self, entry: Fields) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        overrides = entry.mapping("tagOverrides")
        for name in overrides.names():
            one = overrides.mapping(name)
            one.allow_only("operation", "value")
            if one.string("operation") == "REMOVE":
                found[name] = None
                continue
            if one.string("operation") not in ("", "UPSERT"):
                raise one.error("operation", "UPSERT or REMOVE")
            try:
                found[name] = tag_value_format(one.string("value"))
            except TagValueError as error:
                self.report(Severity.IGNORED, one.path("value"), f"{error}; the tag is not changed")
        return found

    def _tracing(self, entry: Fields) -> list[TracingEntry]:
        entry.allow_only(
            *("match", "providers", "randomSamplingPercentage", "disableSpanReporting"),
            *("customTags", "useRequestIdForTraceSampling", "enableIstioTags"),
        )
        is_server = self._applies(entry.mapping("match"))
        providers = [one.string("name") for one in entry.mappings("providers")]
        if len(providers) > 1:
            self.report(
                Severity.IGNORED, entry.path("providers"), "only the first provider gets spans"
            )
        for name in ("useRequestIdForTraceSampling", "enableIstioTags"):
            if entry.has(name):
                self.report(Severity.IGNORED, entry.path(name), "is not supported")
        disabled = (
            entry.boolean("disableSpanReporting") if entry.has("disableSpanReporting") else None
        )
        sampling = entry.number("randomSamplingPercentage", 0, 100)
        provider = providers[0] if providers else ""
        result = TracingEntry(provider, sampling, disabled, self._custom_tags(entry))
        return [result] if is_server else []

    def _custom_tags(self, entry: Fields) -> tuple[dict[str, object], ...]:
        tags = entry.mapping("customTags")
        found: list[dict[str, object]] = []
        for name in sorted(tags.names()):
            tag = tags.mapping(name)
            if text := tag.mapping("literal").string("value"):
                found.append({"tag": name, "literal": {"value": text}})
            elif header := tag.mapping("header").string("name"):
                default = tag.mapping("header").string("defaultValue")
                source = {"name": header, "default_value": default}
                found.append({"tag": name, "request_header": source})
            else:
                self.report(
                    Severity.IGNORED,
                    tags.path(name),
                    "only tags with a literal or a header are supported",
                )
        return tuple(found)
