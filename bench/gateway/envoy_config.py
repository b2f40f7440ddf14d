# SPDX-License-Identifier: Apache-2.0
"""Static configurations of Envoys without a mesh: routing only, or the filters of a gateway."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.l7.envoy_config import Address, Config, DumpError, bootstrap, cluster, socket_address

_TYPE = "type.googleapis.com/envoy.extensions"
_HCM = "envoy.filters.network.http_connection_manager"
_HTTP_PORT, _HTTPS_PORT = 80, 443


def routing_only(routes: Mapping[str, Address], certificate: Path, key: Path) -> Config:
    """A proxy with no filter but the router. `routes`: the server of each path, without slash."""
    hosts = {"name": "all", "domains": ["*"], "routes": [_route(name) for name in routes]}
    hcm = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "use_remote_address": True,
        "route_config": {"virtual_hosts": [hosts]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
            }
        ],
    }
    filters = [{"name": _HCM, "typed_config": hcm}]
    tls = {"name": "tls", "typed_config": _downstream_tls(certificate, key)}
    listeners = [
        _listener(_HTTP_PORT, {"filters": filters}),
        _listener(_HTTPS_PORT, {"filters": filters, "transport_socket": tls}),
    ]
    return bootstrap(listeners, [cluster(name, server) for name, server in routes.items()])


def same_filters(
    dump: Config, routes: Mapping[str, Address], certificate: Path, key: Path
) -> Config:
    """A proxy with the listeners, filters, routes and clusters of a gateway.

    `dump`: from the gateway's /config_dump?include_eds. `routes`: by name of a cluster in it, the
    server. Raises DumpError.
    """
    listeners = [
        _copied_listener(dump, each["active_state"]["listener"], certificate, key)
        for each in _entries(dump, "ListenersConfigDump", "dynamic_listeners")
        if each["active_state"]["listener"]["address"]["socket_address"]["port_value"]
        in (_HTTP_PORT, _HTTPS_PORT)
    ]
    if len(listeners) < 2:
        raise DumpError(f"{len(listeners)} listeners on the ports {_HTTP_PORT} and {_HTTPS_PORT}")
    clusters = [_copied_cluster(dump, name, server) for name, server in routes.items()]
    return bootstrap(listeners, clusters)


def cluster_names(dump: Config) -> list[str]:
    """The clusters of a gateway's services."""
    found = _entries(dump, "ClustersConfigDump", "dynamic_active_clusters")
    return [each["cluster"]["name"] for each in found if each["cluster"].get("type") == "EDS"]


def _copied_listener(dump: Config, listener: Config, certificate: Path, key: Path) -> Config:
    made = copy.deepcopy(listener)
    made.pop("@type", None)
    made["address"] = socket_address("0.0.0.0", listener["address"]["socket_address"]["port_value"])
    made.pop("additional_addresses", None)
    for chain in _chains(made):
        for each in chain["filters"]:
            if "rds" in each["typed_config"]:
                name = each["typed_config"].pop("rds")["route_config_name"]
                each["typed_config"]["route_config"] = _route_config(dump, name)
        if "transport_socket" in chain:
            common = chain["transport_socket"]["typed_config"]["common_tls_context"]
            common.pop("tls_certificate_sds_secret_configs", None)
            common["tls_certificates"] = [_certificate(certificate, key)]
    return made


def _copied_cluster(dump: Config, name: str, server: Address) -> Config:
    for each in _entries(dump, "ClustersConfigDump", "dynamic_active_clusters"):
        if each["cluster"]["name"] == name:
            stored = copy.deepcopy(each["cluster"])
            break
    else:
        raise DumpError(f"no cluster {name!r}")
    for field in ("@type", "eds_cluster_config"):
        stored.pop(field, None)
    load = {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(*server)}}]}],
    }
    return {**stored, "type": "STATIC", "load_assignment": load}


def _route_config(dump: Config, name: str) -> Config:
    for each in _entries(dump, "RoutesConfigDump", "dynamic_route_configs"):
        if each["route_config"]["name"] == name:
            found: Config = copy.deepcopy(each["route_config"])
            found.pop("@type", None)
            return found
    raise DumpError(f"no route configuration {name!r}")


def _chains(listener: Config) -> Iterator[Config]:
    yield from listener.get("filter_chains") or []
    if "default_filter_chain" in listener:
        yield listener["default_filter_chain"]


def _entries(dump: Config, kind: str, field: str) -> list[Any]:
    for part in dump["configs"]:
        if part["@type"].endswith(f".{kind}"):
            return list(part.get(field) or [])
    return []


def _listener(port: int, chain: Config) -> Config:
    return {
        "name": f"in-{port}",
        "address": socket_address("0.0.0.0", port),
        "filter_chains": [chain],
    }


def _route(name: str) -> Config:
    match = {"path_separated_prefix": f"/{name}"}
    return {"match": match, "route": {"cluster": name, "timeout": "0s"}}


def _downstream_tls(certificate: Path, key: Path) -> Config:
    common = {
        "tls_certificates": [_certificate(certificate, key)],
        "alpn_protocols": ["h2", "http/1.1"],
    }
    return {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": common,
    }


def _certificate(certificate: Path, key: Path) -> Config:
    return {
        "certificate_chain": {"filename": str(certificate)},
        "private_key": {"filename": str(key)},
    }
