# SPDX-License-Identifier: Apache-2.0
"""Istio's counters of gRPC messages.

Envoy's filter `grpc_stats` formats both counts of a stream as one text, and the access logger that
counts has no function to divide it. Header mutations have:

    backend ─▶ upstream filter: add a trailer with each count ─▶ router, whose access logger counts
            ─▶ downstream filter: remove the trailers ─▶ client

So neither the client nor the backend sees the trailers. The router's access logger does not see the
filter states of the client, so trailers carry them, too. Trailers of these names that the backend
sends are removed first. A stream that ends without trailers is not counted: it was cancelled or
reset, or has no response message.
"""

from __future__ import annotations

from typing import Final

from ztunnel.l7.config import Json
from ztunnel.l7.names import PeerState
from ztunnel.l7.telemetry.metrics import MAX_SERIES, Metric, Tags, counters, stats_logger

_TYPE: Final = "type.googleapis.com/envoy.extensions."
_STATE: Final = "envoy.filters.http.grpc_stats"  # the text: `requests,responses`
_TRAILERS: Final = {
    Metric.GRPC_REQUEST_MESSAGES: "ztunnel-grpc-request-messages",
    Metric.GRPC_RESPONSE_MESSAGES: "ztunnel-grpc-response-messages",
}
_PEER_FORMATS: Final = {
    f"ztunnel-{state.name.lower()}": f"%FILTER_STATE({state}:PLAIN)%"
    for state in PeerState
    if state is not PeerState.TRACEPARENT
}
_FORMATS: Final = _PEER_FORMATS | {
    name: f"%CEL(string(filter_state['{_STATE}']).split(',')[{index}])%"
    for index, name in enumerate(_TRAILERS.values())
}


def http_filters() -> list[Json]:
    """Filters in front of all others: they see the response last."""
    removed = {"response_trailers_mutations": [{"remove": each} for each in _FORMATS]}
    return [
        _mutation(removed),
        _extension(_STATE, "filters.http.grpc_stats.v3.FilterConfig", emit_filter_state=True),
    ]


def router_fields(scope: str, tags: Tags) -> Json:
    """Fields of the router. `scope`: as of the other metrics of the destination."""
    codec = "filters.http.upstream_codec.v3.UpstreamCodec"
    added: Json = {
        "formatters": [_cel_formatter()],
        "response_trailers_mutations": [
            mutation
            for key, value in _FORMATS.items()
            for mutation in (
                {"remove": key},
                {"append": {"header": {"key": key, "value": value}}},
            )
        ],
    }
    formats = {metric: f"%TRAILER({name})%" for metric, name in _TRAILERS.items()}
    known = {metric: _by_trailers(of_metric) for metric, of_metric in tags.items()}
    logger = stats_logger(scope, MAX_SERIES, counters(known, formats))
    return {
        "upstream_http_filters": [_mutation(added), _extension("upstream_codec", codec)],
        "upstream_log": [logger | {"filter": _has_counts()}],
    }


def _by_trailers(tags: list[Json]) -> list[Json]:
    """The tags with trailers instead of the filter states of the client."""
    names = {value: f"%TRAILER({key})%" for key, value in _PEER_FORMATS.items()}
    return [
        {**tag, "value_format": names.get(tag["value_format"], tag["value_format"])} for tag in tags
    ]


def _has_counts() -> Json:
    trailer = _TRAILERS[Metric.GRPC_REQUEST_MESSAGES]
    expression = f"response.trailers['{trailer}'].matches('^[0-9]+$')"
    config = {
        "@type": f"{_TYPE}access_loggers.filters.cel.v3.ExpressionFilter",
        "expression": expression,
    }
    return {"extension_filter": {"name": "has_counts", "typed_config": config}}


def _cel_formatter() -> Json:
    functions = {"enable_string_conversion": True, "enable_string_functions": True}
    return _extension("envoy.formatter.cel", "formatter.cel.v3.Cel", cel_config=functions)


def _mutation(mutations: Json) -> Json:
    return _extension(
        "envoy.filters.http.header_mutation",
        "filters.http.header_mutation.v3.HeaderMutation",
        mutations=mutations,
    )


def _extension(name: str, type_name: str, /, **fields: object) -> Json:
    return {"name": name, "typed_config": {"@type": _TYPE + type_name, **fields}}
