# SPDX-License-Identifier: Apache-2.0
"""A waypoint's listener around the fields of telemetry, for tests with a real Envoy."""

from __future__ import annotations

from typing import Any

from ztunnel.l7.inputs import Destination, Inputs, Protocol, Settings
from ztunnel.l7.names import PeerState
from ztunnel.l7.objects import l7_object
from ztunnel.l7.store import L7Store
from ztunnel.l7.telemetry import bootstrap, fields
from ztunnel.mesh.model import Service, ServicePort, TunnelProtocol, Workload
from ztunnel.mesh.state import MeshState

Json = dict[str, Any]
TYPE = "type.googleapis.com/"
PORT = ServicePort(80, "http")
SERVICE = Service(
    namespace="shop", name="web", hostname="web.shop.svc.cluster.local", ports=(PORT,)
)
WORKLOAD = Workload(
    uid="Kubernetes//Pod/shop/web-1",
    pod_uid="1",
    name="web-1",
    namespace="shop",
    service_account="web",
    node="n",
    addresses=("10.0.0.2",),
    protocol=TunnelProtocol.HBONE,
    labels={"app": "web", "version": "v2"},
    owner_kind="deployment",
    owner_name="web-v2",
)
IDENTITY = "spiffe://cluster.local/ns/shop/sa/client"
TLVS = (
    (PeerState.IDENTITY.tlv, IDENTITY.encode()),
    (PeerState.WORKLOAD.tlv, b"client"),
    (PeerState.NAMESPACE.tlv, b"shop"),
    (PeerState.APP.tlv, b"client-app"),
    (PeerState.VERSION.tlv, b"v7"),
)
HTTP = Destination(gateway="shop/waypoint", protocol=Protocol.HTTP, service=SERVICE, port=PORT)
TCP = Destination(gateway="shop/waypoint", protocol=Protocol.TCP, service=SERVICE, port=PORT)


def inputs(*objects: Json, settings: Settings | None = None) -> Inputs:
    store = L7Store()
    for obj in objects:
        store.put(l7_object(obj))
    return Inputs(store, MeshState(), settings or Settings())


def telemetry(spec: Json, name: str = "t", namespace: str = "shop", created: str = "") -> Json:
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
    return {"kind": "Telemetry", "metadata": metadata, "spec": spec}


def cluster(given: Inputs, port: int) -> Json:
    endpoint = {
        "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}},
        "metadata": fields.endpoint_metadata(given, SERVICE, WORKLOAD),
    }
    endpoints = [{"lb_endpoints": [endpoint]}]
    assignment = {"cluster_name": "web", "endpoints": endpoints}
    return {"name": "web", "type": "STATIC", "load_assignment": assignment}


def _filter(name: str, kind: str, **values: Any) -> Json:
    return {"name": name, "typed_config": {"@type": f"{TYPE}envoy.extensions.{kind}", **values}}


def _peer_state() -> Json:
    source = "%FILTER_STATE(envoy.network.proxy_protocol.tlv:FIELD:{})%"
    entries = [
        {
            "object_key": str(key),
            "factory_key": "envoy.string",
            "format_string": {"text_format_source": {"inline_string": source.format(key)}},
            "skip_if_empty": True,
        }
        for key in PeerState
    ]
    kind = "filters.network.set_filter_state.v3.Config"
    return _filter("envoy.filters.network.set_filter_state", kind, on_new_connection=entries)


def _listener(port: int, last: Json) -> Json:
    rules = [{"tlv_type": key.tlv, "on_tlv_present": {"key": str(key)}} for key in PeerState]
    proxy_protocol = _filter(
        "envoy.filters.listener.proxy_protocol",
        "filters.listener.proxy_protocol.v3.ProxyProtocol",
        rules=rules,
        tlv_location="FILTER_STATE",
    )
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "name": "waypoint",
        "address": address,
        "listener_filters": [proxy_protocol],
        "filter_chains": [{"filters": [_peer_state(), last]}],
    }


def http_bootstrap(given: Inputs, port: int, backend: int, eviction_interval_s: int = 1800) -> Json:
    routes = [
        {"match": {"prefix": "/denied"}, "direct_response": {"status": 403}},
        {"match": {"prefix": "/"}, "route": {"cluster": "web"}},
    ]
    router = _filter("envoy.filters.http.router", "filters.http.router.v3.Router")
    manager = _filter(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="waypoint",
        route_config={"virtual_hosts": [{"name": "web", "domains": ["*"], "routes": routes}]},
        http_filters=[router],
        **fields.hcm(given, HTTP),
    )
    return _bootstrap(given, _listener(port, manager), backend, eviction_interval_s)


def tcp_bootstrap(given: Inputs, port: int, backend: int) -> Json:
    proxy = _filter(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="waypoint",
        cluster="web",
        **fields.tcp(given, TCP),
    )
    return _bootstrap(given, _listener(port, proxy), backend, 1800)


def _bootstrap(given: Inputs, listener: Json, backend: int, eviction_interval_s: int) -> Json:
    clusters = [cluster(given, backend), *fields.clusters(given)]
    return {
        **bootstrap.fields(eviction_interval_s),
        "stats_flush_interval": "0.2s",
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }
