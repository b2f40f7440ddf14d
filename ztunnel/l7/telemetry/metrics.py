# SPDX-License-Identifier: Apache-2.0
"""Istio's metrics from Envoy's `stats` access logger.

Each destination has a scope of its own, which survives updates of the listener. The scope limits
the number of series, so that neither a client nor a service can exhaust Envoy's memory or the
series of other services. Envoy counts what exceeds a limit in `envoy_server_stats_overflow_counter`
and `..._histogram`.

`telemetry.grpc_messages` has the counters of gRPC messages.
"""

from __future__ import annotations

from enum import StrEnum

from ztunnel.l7.config import Json

MAX_SERIES = 1000  # of each metric and destination
MAX_GATEWAY_SERIES = 10_000  # of each metric and ingress gateway, for all its destinations
MAX_COUNTERS_PER_SERIES = 4  # counters that a TCP connection has

_TYPE = "type.googleapis.com/"


class Metric(StrEnum):
    """Istio's names (istio.io, "Istio Standard Metrics")."""

    REQUEST_COUNT = "istio_requests_total"
    REQUEST_DURATION = "istio_request_duration_milliseconds"
    REQUEST_SIZE = "istio_request_bytes"
    RESPONSE_SIZE = "istio_response_bytes"
    GRPC_REQUEST_MESSAGES = "istio_request_messages_total"
    GRPC_RESPONSE_MESSAGES = "istio_response_messages_total"
    TCP_OPENED_CONNECTIONS = "istio_tcp_connections_opened_total"
    TCP_CLOSED_CONNECTIONS = "istio_tcp_connections_closed_total"
    TCP_SENT_BYTES = "istio_tcp_sent_bytes_total"
    TCP_RECEIVED_BYTES = "istio_tcp_received_bytes_total"


Tags = dict[Metric, list[Json]]  # the tags of each metric that is enabled

_HISTOGRAMS = {
    Metric.REQUEST_DURATION: ("Milliseconds", "%DURATION%"),
    Metric.REQUEST_SIZE: ("Bytes", "%DOWNSTREAM_WIRE_BYTES_RECEIVED%"),
    Metric.RESPONSE_SIZE: ("Bytes", "%DOWNSTREAM_WIRE_BYTES_SENT%"),
}
_TCP_COUNTERS = {
    Metric.TCP_SENT_BYTES: "%DOWNSTREAM_WIRE_BYTES_SENT%",
    Metric.TCP_RECEIVED_BYTES: "%DOWNSTREAM_WIRE_BYTES_RECEIVED%",
}


def http_loggers(scope: str, tags: Tags, max_series: int = MAX_SERIES) -> list[Json]:
    """Access loggers that count requests. `scope` identifies the destination."""
    requests = counters(tags, {Metric.REQUEST_COUNT: ""})
    histograms = [
        {
            "stat": {"name": str(metric), "tags": tags[metric]},
            "unit": unit,
            "value_format": value,
        }
        for metric, (unit, value) in _HISTOGRAMS.items()
        if metric in tags
    ]
    return [stats_logger(scope, max_series, requests, histograms)] if requests or histograms else []


def tcp_loggers(scope: str, tags: Tags, max_series: int = MAX_SERIES) -> list[Json]:
    """Access loggers that count connections. Bytes count when the connection ends."""
    opened = counters(tags, {Metric.TCP_OPENED_CONNECTIONS: ""})
    closed = counters(tags, {Metric.TCP_CLOSED_CONNECTIONS: "", **_TCP_COUNTERS})
    loggers = []
    if opened:
        loggers.append(stats_logger(scope, max_series, opened) | _on("TcpConnectionStart"))
    if closed:
        loggers.append(stats_logger(scope, max_series, closed) | _on("TcpConnectionEnd"))
    return loggers


def _on(log_type: str) -> Json:
    return {"filter": {"log_type_filter": {"types": [log_type]}}}


def counters(tags: Tags, formats: dict[Metric, str]) -> list[Json]:
    """Counters of a stats access logger; an empty format counts 1."""
    return [
        {
            "stat": {"name": str(metric), "tags": tags[metric]},
            **({"value_format": value} if value else {"value_fixed": "1"}),
        }
        for metric, value in formats.items()
        if metric in tags
    ]


def stats_logger(
    scope: str, max_series: int, counted: list[Json], histograms: list[Json] | None = None
) -> Json:
    """An access logger that counts in the scope of a destination."""
    config: Json = {
        "@type": _TYPE + "envoy.extensions.access_loggers.stats.v3.Config",
        "stats_scope": {
            "sharing_name": f"istio|{scope}",
            "max_counters": MAX_COUNTERS_PER_SERIES * max_series,
            "max_histograms": len(_HISTOGRAMS) * max_series,
            "enable_eviction": True,
        },
        "counters": counted,
    }
    if histograms:
        config["histograms"] = histograms
    return {"name": "envoy.access_loggers.stats", "typed_config": config}
