# SPDX-License-Identifier: Apache-2.0
"""Rows of tables from Envoy's config dump and cluster status. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ztctl.output import Row, lookup

Json = dict[str, Any]


def section(dump: Json, kind: str, field: str) -> list[Json]:
    """The entries of a field of Envoy's dump of a kind of resources."""
    for section in dump.get("configs") or []:
        if str(section.get("@type", "")).endswith(f".{kind}ConfigDump"):
            return list(section.get(field) or [])
    return []


def listeners(dump: Json) -> list[Json]:
    """The listeners in use."""
    found = [each.get("listener") for each in section(dump, "Listeners", "static_listeners")]
    found += [
        lookup(each, "active_state.listener")
        for each in section(dump, "Listeners", "dynamic_listeners")
    ]
    return [each for each in found if each]


def routes(dump: Json) -> list[Json]:
    """The route configurations."""
    found = section(dump, "Routes", "dynamic_route_configs")
    found += section(dump, "Routes", "static_route_configs")
    return [each["route_config"] for each in found if each.get("route_config")]


def clusters(dump: Json) -> list[Json]:
    """The clusters, warming ones included."""
    names = ("static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters")
    found = [each for name in names for each in section(dump, "Clusters", name)]
    return [each["cluster"] for each in found if each.get("cluster")]


def listener_rows(listener: Json) -> Iterator[Row]:
    """One row for each filter chain, with the addresses or server names that select it."""
    matches: dict[str, list[str]] = {}
    _collect(listener.get("filter_chain_matcher") or {}, [], matches)
    address = socket_address(listener.get("address") or {})
    for index, chain in enumerate(listener.get("filter_chains") or [{}]):
        name = chain.get("name", "")
        yield {
            "listener": listener.get("name") or f"#{index}",
            "address": address,
            "chain": name,
            "match": matches.get(name) or _chain_match(chain.get("filter_chain_match") or {}),
            "destination": _chain_destination(chain),
        }


def route_rows(config: Json) -> Iterator[Row]:
    """One row for each route."""
    for host in config.get("virtual_hosts") or []:
        for route in host.get("routes") or [{}]:
            yield {
                "name": config.get("name") or "-",
                "domains": host.get("domains") or [],
                "match": _route_match(route.get("match") or {}),
                "route": route.get("name", ""),
                "target": _route_target(route),
            }


def cluster_row(cluster: Json) -> Row:
    """One cluster."""
    policy = lookup(cluster, "load_balancing_policy.policies") or []
    names = [lookup(each, "typed_extension_config.name") or "" for each in policy]
    balancing = [str(name).rpartition(".")[2] for name in names]
    return {
        "name": cluster.get("name"),
        "type": cluster.get("type") or lookup(cluster, "cluster_type.name") or "STATIC",
        "lb": balancing or cluster.get("lb_policy") or "ROUND_ROBIN",
        "timeout": cluster.get("connect_timeout"),
        "tls": "yes" if cluster.get("transport_socket") else "",
    }


def endpoint_rows(status: Json) -> Iterator[Row]:
    """One row for each host of each cluster."""
    for cluster in status.get("cluster_statuses") or []:
        for host in cluster.get("host_statuses") or []:
            stats = {each.get("name"): each.get("value", "0") for each in host.get("stats") or []}
            yield {
                "cluster": cluster.get("name"),
                "endpoint": socket_address(host.get("address") or {}),
                "health": _health(host.get("health_status") or {}),
                "weight": host.get("weight", 1),
                "requests": stats.get("rq_total", "0"),
                "errors": stats.get("rq_error", "0"),
            }


def socket_address(address: Json) -> str:
    """`ip:port`, or the path of a pipe."""
    found = address.get("socket_address") or {}
    if not found:
        return str(lookup(address, "pipe.path") or "")
    ip, port = str(found.get("address", "")), found.get("port_value", 0)
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _collect(matcher: Json, path: list[str], found: dict[str, list[str]]) -> None:
    """The addresses by chain of a tree of exact matches on IP address and port."""
    tree = matcher.get("matcher_tree") or {}
    branches = dict(lookup(tree, "exact_match_map.map") or {})
    if matcher.get("on_no_match"):
        branches["*"] = matcher["on_no_match"]
    for value, on_match in branches.items():
        nested = on_match.get("matcher")
        if nested:
            _collect(nested, [*path, value], found)
            continue
        chain = lookup(on_match, "action.typed_config.value") or lookup(on_match, "action.name")
        found.setdefault(str(chain), []).append(":".join([*path, value]))


def _chain_match(match: Json) -> list[str]:
    """Server names, and how many networks of clients."""
    networks = match.get("source_prefix_ranges") or []
    shown = [f"{each.get('address_prefix')}/{each.get('prefix_len', 0)}" for each in networks[:2]]
    if len(networks) > 2:
        shown = [f"{len(networks)} networks"]
    return [*(match.get("server_names") or []), *(f"from {each}" for each in shown)]


def _chain_destination(chain: Json) -> str:
    for each in chain.get("filters") or []:
        config = each.get("typed_config") or {}
        rds = lookup(config, "rds.route_config_name") or lookup(config, "route_config.name")
        if rds:
            return f"routes {rds}"
        if "route_config" in config:
            return "inline routes"
        if str(config.get("@type", "")).endswith(".TcpProxy"):
            return f"cluster {_weighted(config)}"
    return ""


def _route_match(match: Json) -> str:
    kinds = ("prefix", "path", "path_separated_prefix", "safe_regex", "connect_matcher")
    parts = []
    for kind in kinds:
        if kind in match:
            value = match[kind]
            text = value.get("regex", "") if isinstance(value, dict) else value
            parts.append({"prefix": f"{text}*", "path": f"={text}"}.get(kind, f"{kind} {text}"))
    for header in match.get("headers") or []:
        condition = header.get("string_match") or {}
        value = next((str(each) for each in condition.values() if isinstance(each, str)), "")
        parts.append(f"{header.get('name')}={value or '...'}")
    parts += [f"?{each.get('name')}" for each in match.get("query_parameters") or []]
    return " ".join(parts)


def _route_target(route: Json) -> str:
    if "route" in route:
        return _weighted(route["route"])
    if "redirect" in route:
        return "redirect"
    if "direct_response" in route:
        return f"status {lookup(route, 'direct_response.status')}"
    return ""


def _weighted(action: Json) -> str:
    if action.get("cluster"):
        return str(action["cluster"])
    weighted = lookup(action, "weighted_clusters.clusters") or []
    return ", ".join(f"{each.get('name')} {each.get('weight', 0)}" for each in weighted)


def _health(status: Json) -> str:
    flags = [name for name, value in status.items() if name.startswith("failed_") and value]
    return ",".join(flags) or str(status.get("eds_health_status") or "HEALTHY")
