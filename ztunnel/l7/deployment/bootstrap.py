# SPDX-License-Identifier: Apache-2.0
"""Envoy's bootstrap configuration in a gateway pod.

    127.0.0.1:15010  delta ADS, served by `ztunnel gateway` of the node: all other resources
    127.0.0.1:15000  Envoy's admin interface
    <pod IP>:15021   GET /healthz/ready: 200 once the first configuration is active

The first fetch of clusters and listeners has no timeout: a gateway without configuration stays
unready instead of refusing requests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ztunnel.l7.deployment.settings import DRAIN_S, Json
from ztunnel.l7.names import ADMIN_PORT, READINESS_PORT, XDS_PORT
from ztunnel.l7.telemetry import bootstrap as telemetry

LOOPBACK = "127.0.0.1"
XDS_CLUSTER = "xds"
ADMIN_CLUSTER = "admin"
READINESS_PATH = "/healthz/ready"
MAX_CONNECTIONS = 50_000  # of clients; more are refused, instead of running out of memory
HEAP_SHARE = 0.9  # of the container's memory limit that Envoy's heap may use
# Without the first value, Envoy rejects every regular expression of more than about 95 characters,
# and the whole listener with it; it is Istio's. The second one limits what JWKS servers send.
RUNTIME = {
    "re2.max_program_size.error_level": 32768,  # instructions of one expression
    "http.async_response_buffer_limit": 1 << 20,  # bytes of a response that a filter requests
}
LOG_FLUSH_INTERVAL_MS = 1000  # of the access log, as Istio's; Envoy's default is 10 s
_BUFFER_BYTES = 1 << 20  # flow-control windows and buffers of the xDS stream
_V3 = "V3"


@dataclass(frozen=True)
class BootstrapSettings:
    """`gateway`: namespace/name. `node_id`: unique among the pods. `address`: the pod's IP.

    `memory_bytes`: the container's limit, 0 without one.
    """

    gateway: str
    node_id: str
    address: str
    memory_bytes: int = 0


def bootstrap(settings: BootstrapSettings) -> Json:
    """Return the configuration, in the JSON form of envoy.config.bootstrap.v3.Bootstrap."""
    found: Json = {
        "node": {"id": settings.node_id, "cluster": settings.gateway},
        "admin": {"address": _address(LOOPBACK, ADMIN_PORT)},
        "dynamic_resources": _dynamic_resources(),
        "static_resources": {
            "listeners": [_readiness_listener(settings.address)],
            "clusters": [_xds_cluster(), _admin_cluster()],
        },
        "overload_manager": _overload_manager(settings.memory_bytes),
        "layered_runtime": {"layers": [{"name": "static", "static_layer": RUNTIME}]},
    }
    return {**found, **telemetry.fields()}


def envoy_arguments(config: Json, threads: int | None) -> list[str]:
    """Envoy's command line for a bootstrap configuration."""
    concurrency = ["--concurrency", str(threads)] if threads else []
    return [
        "--config-yaml",
        json.dumps(config, separators=(",", ":"), sort_keys=True),
        "--disable-hot-restart",  # needs shared memory, and a pod never restarts Envoy hot
        "--drain-time-s",
        str(DRAIN_S),
        "--drain-strategy",
        "immediate",
        "--file-flush-interval-msec",
        str(LOG_FLUSH_INTERVAL_MS),
        *concurrency,
    ]


def drain_request() -> bytes:
    """The HTTP request to Envoy's admin interface that starts the drain.

    Listeners accept connections until the drain time is over, and each response on an HTTP
    connection closes it: clients continue at another pod.
    """
    return (
        b"POST /drain_listeners?graceful&skip_exit HTTP/1.1\r\n"
        b"Host: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def _address(address: str, port: int) -> Json:
    return {"socket_address": {"address": address, "port_value": port}}


def _dynamic_resources() -> Json:
    source = {"ads": {}, "resource_api_version": _V3, "initial_fetch_timeout": "0s"}
    return {
        "ads_config": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": _V3,
            "set_node_on_first_message_only": True,
            "grpc_services": [
                {
                    "envoy_grpc": {
                        "cluster_name": XDS_CLUSTER,
                        "retry_policy": {
                            "retry_back_off": {"base_interval": "0.2s", "max_interval": "2s"}
                        },
                    }
                }
            ],
        },
        "cds_config": source,
        "lds_config": source,
    }


def _static_cluster(name: str, port: int) -> Json:
    endpoint = {"endpoint": {"address": _address(LOOPBACK, port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _xds_cluster() -> Json:
    keepalive = {"interval": "10s", "timeout": "5s"}  # a stuck `ztunnel gateway` is redialed
    window = {
        "initial_stream_window_size": _BUFFER_BYTES,
        "initial_connection_window_size": _BUFFER_BYTES,
    }
    http2 = {"connection_keepalive": keepalive, **window}
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": http2},
    }
    return {
        **_static_cluster(XDS_CLUSTER, XDS_PORT),
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
    }


def _admin_cluster() -> Json:
    return _static_cluster(ADMIN_CLUSTER, ADMIN_PORT)


def _readiness_listener(address: str) -> Json:
    route = {
        "match": {
            "path": READINESS_PATH,
            "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
        },
        "route": {"cluster": ADMIN_CLUSTER, "prefix_rewrite": "/ready", "timeout": "1s"},
    }
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network."
        "http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "readiness",
        "request_headers_timeout": "5s",
        "stream_idle_timeout": "5s",
        "common_http_protocol_options": {"idle_timeout": "60s"},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    chain = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": "readiness",
        "address": _address(address, READINESS_PORT),
        "filter_chains": [{"filters": [chain]}],
        # an overloaded gateway is not restarted: it stays ready
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
    }


def _overload_manager(memory_bytes: int) -> Json:
    connections = {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.resource_monitors."
            "downstream_connections.v3.DownstreamConnectionsConfig",
            "max_active_downstream_connections": MAX_CONNECTIONS,
        },
    }
    if not memory_bytes:
        return {"resource_monitors": [connections]}
    heap = {
        "name": "envoy.resource_monitors.fixed_heap",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.resource_monitors."
            "fixed_heap.v3.FixedHeapConfig",
            "max_heap_size_bytes": int(memory_bytes * HEAP_SHARE),
        },
    }
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [connections, heap],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},  # 1 MiB
        "actions": [
            _heap_action("envoy.overload_actions.shrink_heap", 0.85),
            _REDUCED_TIMEOUTS,
            _heap_action("envoy.overload_actions.disable_http_keepalive", 0.92),
            _heap_action("envoy.overload_actions.reset_high_memory_stream", 0.92, 0.98),
            _heap_action("envoy.overload_actions.stop_accepting_connections", 0.95),
            _heap_action("envoy.overload_actions.stop_accepting_requests", 0.98),
        ],
    }


def _heap_action(name: str, threshold: float, saturation: float | None = None) -> Json:
    """An action at a share of the heap, or one that grows until a second share is in use."""
    trigger: Json = {"name": "envoy.resource_monitors.fixed_heap"}
    if saturation is None:
        trigger["threshold"] = {"value": threshold}
    else:
        trigger["scaled"] = {
            "scaling_threshold": threshold,
            "saturation_threshold": saturation,
        }
    return {"name": name, "triggers": [trigger]}


# Silent clients lose their connections earlier, the more memory is in use.
_REDUCED_TIMEOUTS: Json = {
    **_heap_action("envoy.overload_actions.reduce_timeouts", 0.80, 0.95),
    "typed_config": {
        "@type": "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig",
        "timer_scale_factors": [
            {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "2s"},
            {"timer": "TRANSPORT_SOCKET_CONNECT", "min_timeout": "2s"},
        ],
    },
}
