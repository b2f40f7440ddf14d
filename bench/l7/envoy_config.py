# SPDX-License-Identifier: Apache-2.0
"""Static configurations of Envoys without a mesh: routing only, or the filters of a waypoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from ztunnel.l7.names import PeerState

_TYPE = "type.googleapis.com/envoy.extensions"
_HCM = "envoy.filters.network.http_connection_manager"
_SET_STATE = "envoy.filters.network.set_filter_state"

Config = dict[str, Any]
Address = tuple[str, int]
Peer = Mapping[PeerState, str]


class DumpError(Exception):
    """A configuration dump lacks an expected part."""


def routing_only(routes: Mapping[int, Address]) -> Config:
    """A proxy with no filter but the router. `routes`: the server for each listening port."""
    listeners, clusters = [], []
    for port, server in routes.items():
        hcm = {
            "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "plain",
            "route_config": _all_to(f"to-{port}"),
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
                }
            ],
        }
        listeners.append(listener(port, [{"name": _HCM, "typed_config": hcm}]))
        clusters.append(cluster(f"to-{port}", server))
    return bootstrap(listeners, clusters)


def same_filters(dump: Config, routes: Mapping[int, tuple[str, Address]], peer: Peer) -> Config:
    """A proxy with the filters, routes and clusters of a waypoint.

    `dump`: from the waypoint's /config_dump?include_eds. `routes`: by listening port, the route
    configuration whose chain is copied, and the server. `peer`: see `copied_filters`.
    """
    listeners, clusters = [], []
    for port, (name, server) in routes.items():
        target = f"to-{port}"
        listeners.append(listener(port, copied_filters(dump, name, target, peer)))
        clusters.append(copied_cluster(dump, name, target, server))
    return bootstrap(listeners, clusters)


def copied_filters(dump: Config, route: str, target: str, peer: Peer) -> list[Config]:
    """The network filters of the chain with this route configuration, which routes to `target`.

    `peer`: constants in the place of the client's TLVs, so that policies and metrics evaluate what
    they evaluate at the waypoint. Raises DumpError.
    """
    chain = next((chain for chain in _chains(dump) if _route_name(chain) == route), None)
    if chain is None:
        raise DumpError(f"no chain with the route configuration {route!r}")
    filters = copy.deepcopy(chain["filters"])
    config = filters[-1]["typed_config"]
    del config["rds"]
    config["route_config"] = copy.deepcopy(_route_config(dump, route))
    for each in _routes(config["route_config"]):
        each["route"]["cluster"] = target
    return [_constants(peer) if each["name"] == _SET_STATE else each for each in filters]


def copied_cluster(dump: Config, route: str, target: str, server: Address) -> Config:
    """The cluster of this route configuration, renamed, with one server as its endpoint."""
    name = next(_routes(_route_config(dump, route)))["route"]["cluster"]
    stored = _named(dump, "ClustersConfigDump", "name", name)
    assignment = _named(dump, "EndpointsConfigDump", "cluster_name", name)
    kept = {key: stored[key] for key in stored if key not in ("@type", "eds_cluster_config")}
    first = assignment["endpoints"][0]["lb_endpoints"][0]
    endpoint = {"endpoint": {"address": socket_address(*server)}, "metadata": first.get("metadata")}
    load = {"cluster_name": target, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {**kept, "name": target, "type": "STATIC", "load_assignment": load}


def bootstrap(listeners: list[Config], clusters: list[Config]) -> Config:
    """A bootstrap configuration."""
    return {
        "node": {"id": "bench", "cluster": "bench"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def listener(port: int, filters: list[Config]) -> Config:
    """A listener on all IPv4 addresses."""
    return {
        "name": f"in-{port}",
        "address": socket_address("0.0.0.0", port),
        "filter_chains": [{"filters": filters}],
    }


def cluster(name: str, server: Address) -> Config:
    """A cluster of one address."""
    endpoint = {"endpoint": {"address": socket_address(*server)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def socket_address(ip: str, port: int) -> Config:
    """An address in Envoy's JSON form."""
    return {"socket_address": {"address": ip, "port_value": port}}


def _all_to(name: str) -> Config:
    route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
    return {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}


def _constants(peer: Peer) -> Config:
    values = [
        {
            "object_key": state.value,
            "factory_key": "envoy.string",
            "format_string": {"text_format_source": {"inline_string": text}},
            "read_only": True,
        }
        for state, text in peer.items()
    ]
    config = {
        "@type": f"{_TYPE}.filters.network.set_filter_state.v3.Config",
        "on_new_connection": values,
    }
    return {"name": _SET_STATE, "typed_config": config}


def _routes(route_config: Config) -> Iterator[Config]:
    for host in route_config["virtual_hosts"]:
        for route in host["routes"]:
            if "route" not in route or "cluster" not in route["route"]:
                raise DumpError("the benchmark copies only routes to one cluster")
            yield route


def _chains(dump: Config) -> Iterator[Config]:
    for each in _of_type(dump, "ListenersConfigDump"):
        yield from each.get("filter_chains", ())


def _route_name(chain: Config) -> str:
    config = chain["filters"][-1].get("typed_config", {})
    return str(config.get("rds", {}).get("route_config_name", ""))


def _route_config(dump: Config, name: str) -> Config:
    found = _named(dump, "RoutesConfigDump", "name", name)
    return {key: value for key, value in found.items() if key != "@type"}


def _named(dump: Config, kind: str, field: str, name: str) -> Config:
    for each in _of_type(dump, kind):
        if each[field] == name:
            return each
    raise DumpError(f"no {name!r} in the {kind}")


# The member of each dump that holds dynamic resources, and the path from there to a resource.
_MEMBERS = {
    "ListenersConfigDump": ("dynamic_listeners", ("active_state", "listener")),
    "RoutesConfigDump": ("dynamic_route_configs", ("route_config",)),
    "ClustersConfigDump": ("dynamic_active_clusters", ("cluster",)),
    "EndpointsConfigDump": ("dynamic_endpoint_configs", ("endpoint_config",)),
}


def _of_type(dump: Config, kind: str) -> Iterator[Config]:
    member, path = _MEMBERS[kind]
    for part in dump["configs"]:
        if part["@type"].endswith(f".{kind}"):
            for entry in part.get(member, ()):
                found = entry
                for name in path:
                    found = found.get(name, {})
                if found:
                    yield found
