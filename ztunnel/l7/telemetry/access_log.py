# SPDX-License-Identifier: Apache-2.0
"""The access log of a waypoint, on Envoy's standard output.

Istio's default format (istio.io, "Envoy Access Logs"), followed by the caller and the backend. The
policy that denied a request is in the response code details, for example
`rbac_access_denied_matched_policy[ns/name]`.
"""

from __future__ import annotations

from ztunnel.l7.config import Json
from ztunnel.l7.inputs import AccessLogEncoding
from ztunnel.l7.names import PeerState
from ztunnel.l7.telemetry.labels import METADATA

_TYPE = "type.googleapis.com/"

_ISTIO_FORMAT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" '
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "
    '"%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% '
    '%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% '
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% "
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%"
)
_PEERS = {
    "source_principal": f"%FILTER_STATE({PeerState.IDENTITY}:PLAIN)%",
    "source_workload": f"%FILTER_STATE({PeerState.WORKLOAD}:PLAIN)%",
    "source_workload_namespace": f"%FILTER_STATE({PeerState.NAMESPACE}:PLAIN)%",
    "source_canonical_service": f"%FILTER_STATE({PeerState.APP}:PLAIN)%",
    "source_canonical_revision": f"%FILTER_STATE({PeerState.VERSION}:PLAIN)%",
    "destination_service": f"%UPSTREAM_METADATA({METADATA}:service)%",
    "destination_workload": f"%UPSTREAM_METADATA({METADATA}:workload)%",
    "destination_canonical_revision": f"%UPSTREAM_METADATA({METADATA}:version)%",
}
_ISTIO_JSON = {
    "start_time": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "route_name": "%ROUTE_NAME%",
    "trace_id": "%TRACE_ID%",
}
_UPSTREAM_FAILURE = "upstream_transport_failure_reason"
_DOWNSTREAM_FAILURE = "downstream_transport_failure_reason"
_TEXT = f"{_ISTIO_FORMAT} {' '.join(f'{name}={value}' for name, value in _PEERS.items())}\n"


def access_log(encoding: AccessLogEncoding, expressions: tuple[str, ...] = ()) -> Json:
    """Log to standard output what all the CEL expressions match; without any, everything."""
    if encoding is AccessLogEncoding.JSON:
        log_format: Json = {"json_format": {**_ISTIO_JSON, **_PEERS}}
    else:
        log_format = {"text_format_source": {"inline_string": _TEXT}}
    logger: Json = {
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": _TYPE + "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": log_format,
        },
    }
    filters = [_expression_filter(expression) for expression in expressions]
    if len(filters) > 1:
        logger["filter"] = {"and_filter": {"filters": filters}}
    elif filters:
        logger["filter"] = filters[0]
    return logger


def refused_log(encoding: AccessLogEncoding, expressions: tuple[str, ...] = ()) -> Json:
    """Log connections that no filter chain gets, and failed TLS handshakes: a listener's log.

    The same fields, with the failure of TLS towards the client instead of that to a backend.
    """
    logger = access_log(encoding, expressions)
    config = logger["typed_config"]
    if encoding is AccessLogEncoding.JSON:
        fields = {k: v for k, v in {**_ISTIO_JSON, **_PEERS}.items() if k != _UPSTREAM_FAILURE}
        added = {_DOWNSTREAM_FAILURE: f"%{_DOWNSTREAM_FAILURE.upper()}%"}
        log_format: Json = {"json_format": {**fields, **added}}
    else:
        text = _TEXT.replace(_UPSTREAM_FAILURE.upper(), _DOWNSTREAM_FAILURE.upper())
        log_format = {"text_format_source": {"inline_string": text}}
    refused = {
        "or_filter": {
            "filters": [
                {"response_flag_filter": {"flags": ["NR"]}},
                _expression_filter("connection.transport_failure_reason != ''"),
            ]
        }
    }
    wanted = [refused, *([logger["filter"]] if "filter" in logger else [])]
    chosen = {"and_filter": {"filters": wanted}} if len(wanted) > 1 else refused
    return {**logger, "typed_config": {**config, "log_format": log_format}, "filter": chosen}


def _expression_filter(expression: str) -> Json:
    name = "envoy.access_loggers.extension_filters.cel"
    kind = _TYPE + "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    config = {"@type": kind, "expression": expression}
    return {"extension_filter": {"name": name, "typed_config": config}}
