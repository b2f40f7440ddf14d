# SPDX-License-Identifier: Apache-2.0
"""A waypoint whose Envoy terminates and originates HBONE itself, as Istio's does. Pure.

    client's proxy ──HBONE──▶ :15008 CONNECT ──▶ internal listener `main` (routing)
                                              ──▶ internal listener `tunnel` ──HBONE──▶ server:15008

An experiment of the benchmark: the mesh itself uses the node's proxy for both tunnels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.l7.envoy_config import Address, Config, bootstrap, listener, socket_address

HBONE = 15008
_TYPE = "type.googleapis.com/envoy.extensions"
_HTTP2 = {
    "allow_connect": True,
    "initial_stream_window_size": 1 << 20,
    "initial_connection_window_size": 16 << 20,
}
_INTERNAL = "envoy.bootstrap.internal_listener"
_HCM = f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"


def config(
    certificates: Mapping[str, Path], filters: list[Config], server: Address, identity: str
) -> Config:
    """The bootstrap configuration. `certificates`: `chain`, `key`, `roots`. `filters`: between the
    tunnels; they forward to the cluster `app`. `identity`: the SPIFFE ID of the server."""
    made = bootstrap(
        [
            _terminating(certificates),
            _internal("main", filters),
            _internal("tunnel", [_tunnel(server)]),
        ],
        [
            _internal_cluster("main", "main"),
            _internal_cluster("app", "tunnel"),
            _hbone_cluster(certificates, server[0], identity),
        ],
    )
    made["bootstrap_extensions"] = [
        {
            "name": _INTERNAL,
            "typed_config": {"@type": f"{_TYPE}.bootstrap.internal_listener.v3.InternalListener"},
        }
    ]
    return made


def _terminating(certificates: Mapping[str, Path]) -> Config:
    """Accepts tunnels, and forwards the bytes of each stream to the internal listener."""
    connect = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "main",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    hcm = {
        "@type": _HCM,
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http2_protocol_options": _HTTP2,
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "http_filters": [_router()],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [connect]}]},
    }
    found = listener(
        HBONE, [{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}]
    )
    tls = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _tls(certificates),
    }
    found["filter_chains"][0]["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": tls,
    }
    return found


def _internal(name: str, filters: list[Config]) -> Config:
    return {"name": name, "internal_listener": {}, "filter_chains": [{"filters": filters}]}


def _tunnel(server: Address) -> Config:
    """Carries each connection in a stream of a tunnel to the server."""
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": f"{_TYPE}.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tunnel",
            "cluster": "hbone",
            "tunneling_config": {"hostname": f"{server[0]}:{server[1]}"},
        },
    }


def _internal_cluster(name: str, target: str) -> Config:
    endpoint = {
        "endpoint": {"address": {"envoy_internal_address": {"server_listener_name": target}}}
    }
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _hbone_cluster(certificates: Mapping[str, Path], ip: str, identity: str) -> Config:
    common = _tls(certificates)
    common["validation_context"] = {
        **common["validation_context"],
        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": identity}}],
    }
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    endpoint = {"endpoint": {"address": socket_address(ip, HBONE)}}
    return {
        "name": "hbone",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "hbone", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": _HTTP2},
            }
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_TYPE}.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": common,
            },
        },
    }


def _router() -> Config:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
    }


def _tls(certificates: Mapping[str, Path]) -> Config:
    at = {name: {"filename": str(path)} for name, path in certificates.items()}
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{"certificate_chain": at["chain"], "private_key": at["key"]}],
        "validation_context": {"trusted_ca": at["roots"]},
    }
