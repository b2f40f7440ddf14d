# SPDX-License-Identifier: Apache-2.0
"""DestinationRule's connectionPool and retryBudget as fields of a cluster."""

from __future__ import annotations

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.istio.values import Reporter, duration, integer
from ztunnel.l7.config import Json
from ztunnel.l7.inputs import Protocol

UNLIMITED = 2**32 - 1  # Istio's default of all limits; Envoy's own are 1024, and 3 retries
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UPGRADE = ("DEFAULT", "DO_NOT_UPGRADE", "UPGRADE")
_HTTP2_OPTIONS = {"allow_connect": True}


def is_request_protocol(protocol: Protocol) -> bool:
    """Whether Envoy handles requests of this protocol, not connections."""
    return protocol in (Protocol.HTTP, Protocol.HTTP2)


def pool_fields(
    pool: Fields, budget: Fields | None, protocol: Protocol, reporter: Reporter
) -> Json:
    """Return fields of the cluster of a port with this protocol. Raises TranslateError."""
    pool.allow_only("tcp", "http")
    tcp, http = pool.mapping("tcp"), pool.mapping("http")
    tcp.allow_only(
        *("maxConnections", "connectTimeout", "tcpKeepalive", "maxConnectionDuration"),
        "idleTimeout",
    )
    http.allow_only(
        *("http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries"),
        *("idleTimeout", "h2UpgradePolicy", "useClientProtocol", "maxConcurrentStreams"),
    )
    fields: Json = {"circuit_breakers": _breakers(tcp, http, budget)}
    if timeout := duration(tcp, "connectTimeout"):
        fields["connect_timeout"] = timeout
    if keepalive := _keepalive(tcp):
        fields["upstream_connection_options"] = {"tcp_keepalive": keepalive}
    options, is_http = _http_options(tcp, http, protocol), is_request_protocol(protocol)
    if is_http and options:
        fields["typed_extension_protocol_options"] = {HTTP_OPTIONS: options}
    duration(tcp, "idleTimeout", zero=True)  # for its errors: of TCP, the listener has it
    if is_http:
        reporter.ignored(tcp, "idleTimeout", why="connections of HTTP have http.idleTimeout")
    return fields


def _breakers(tcp: Fields, http: Fields, budget: Fields | None) -> Json:
    limits = {
        "max_connections": integer(tcp, "maxConnections"),
        "max_pending_requests": integer(http, "http1MaxPendingRequests"),
        "max_requests": integer(http, "http2MaxRequests"),
        "max_retries": integer(http, "maxRetries"),
    }
    # 0 means the default in Istio's API
    thresholds: Json = {name: value or UNLIMITED for name, value in limits.items()}
    thresholds["track_remaining"] = True
    if budget is not None:
        budget.allow_only("percent", "minRetryConcurrency")
        thresholds["retry_budget"] = {
            "budget_percent": {"value": budget.number("percent", 0, 100) or 20.0},
            "min_retry_concurrency": integer(budget, "minRetryConcurrency") or 3,
        }
    return {"thresholds": [thresholds]}


def _keepalive(tcp: Fields) -> Json:
    if not tcp.has("tcpKeepalive"):
        return {}
    keepalive = tcp.mapping("tcpKeepalive")
    keepalive.allow_only("probes", "time", "interval")
    found: Json = {}
    if probes := integer(keepalive, "probes"):
        found["keepalive_probes"] = probes
    for ours, theirs in (("time", "keepalive_time"), ("interval", "keepalive_interval")):
        if text := duration(keepalive, ours):
            found[theirs] = max(1, round(float(text.removesuffix("s"))))  # seconds
    return found


def _http_options(tcp: Fields, http: Fields, protocol: Protocol) -> Json:
    common: Json = {}
    if idle := duration(http, "idleTimeout", zero=True):
        common["idle_timeout"] = idle
    if longest := duration(tcp, "maxConnectionDuration"):
        common["max_connection_duration"] = longest
    if requests := integer(http, "maxRequestsPerConnection"):
        common["max_requests_per_connection"] = requests
    options: Json = {"common_http_protocol_options": common} if common else {}
    return options | _versions(http, protocol)


def _versions(http: Fields, protocol: Protocol) -> Json:
    """Which version of HTTP backends get; empty for that of the port."""
    policy = http.string("h2UpgradePolicy") or "DEFAULT"
    if policy not in _UPGRADE:
        raise http.error("h2UpgradePolicy", " or ".join(_UPGRADE))
    streams = integer(http, "maxConcurrentStreams")
    http2 = _HTTP2_OPTIONS | ({"max_concurrent_streams": streams} if streams else {})
    is_http2 = protocol is Protocol.HTTP2
    versions = {"http_protocol_options": {}, "http2_protocol_options": http2}
    if http.boolean("useClientProtocol"):
        return {"use_downstream_protocol_config": versions}
    if policy == "UPGRADE" or (is_http2 and streams):
        return {"explicit_http_config": {"http2_protocol_options": http2}}
    if policy == "DO_NOT_UPGRADE" and not is_http2:
        return {"explicit_http_config": {"http_protocol_options": {}}}
    return {"use_downstream_protocol_config": versions} if streams else {}
