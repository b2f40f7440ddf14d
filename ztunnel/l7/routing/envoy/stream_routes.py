# SPDX-License-Identifier: Apache-2.0
"""TCPRoute and TLSRoute as chains: backends by weight, selected by SNI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ztunnel.l7.api.route_common import route_problem
from ztunnel.l7.api.stream_route import StreamRoute
from ztunnel.l7.config import ClusterRef, Json
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.problems import Problem
from ztunnel.l7.routing.envoy.chains import chain_action
from ztunnel.l7.routing.envoy.extensions import matcher_input
from ztunnel.l7.routing.references import resolve
from ztunnel.l7.routing.units import UNRESOLVED
from ztunnel.mesh.model import Service


class StreamTarget(NamedTuple):
    """Fields of TcpProxy that select the cluster, the clusters that exist, and what is wrong."""

    fields: Json
    uses: frozenset[ClusterRef]
    problems: tuple[Problem, ...]


def stream_target(
    inputs: Inputs, service: Service | None, route: StreamRoute, *, opaque: bool = False
) -> StreamTarget:
    """Return where connections go. Gateway API: without a valid backend, they are reset.

    `service`: that the route attaches to; None for a gateway. `opaque`: see ClusterRef.
    """
    weighted, uses, problems = [], set(), list(route.problems)
    for ref in route.backends:
        resolution = resolve(inputs, route.obj, service, ref)
        found = resolution.cluster
        found = found._replace(opaque=opaque) if found is not None else None
        if found is None:
            problems.append(
                route_problem(route.obj, ref.where, resolution.message, resolution.reason)
            )
        if ref.weight:
            weighted.append({"name": found.name if found else UNRESOLVED, "weight": ref.weight})
        if found is not None and ref.weight:
            uses.add(found)
    if len(weighted) < 2:
        name = weighted[0]["name"] if weighted else UNRESOLVED
        return StreamTarget({"cluster": name}, frozenset(uses), tuple(problems))
    fields = {"weighted_clusters": {"clusters": weighted}}
    return StreamTarget(fields, frozenset(uses), tuple(problems))


def by_server_name(chains: Sequence[tuple[str, StreamRoute]]) -> Json:
    """OnMatch that selects a chain by SNI: exact names, then the longest suffix, then any name.

    Of two routes with one hostname, the first is used. Other connections match no chain.
    """
    names: dict[str, str] = {}
    for chain, route in chains:
        for hostname in route.hostnames or ("*",):
            names.setdefault(hostname, chain)
    default = names.pop("*", None)
    matchers = [_matcher(name, names[name]) for name in _most_specific_first(names)]
    rest = {"on_no_match": chain_action(default)} if default else {}
    if not matchers:
        return chain_action(default) if default else {"matcher": {}}
    return {"matcher": {"matcher_list": {"matchers": matchers}, **rest}}


def _most_specific_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.startswith("*."), -len(name), name))


def _matcher(hostname: str, chain: str) -> Json:
    value = {"suffix": hostname[1:]} if hostname.startswith("*.") else {"exact": hostname}
    predicate = {"input": matcher_input("server_name", "ServerNameInput"), "value_match": value}
    return {"predicate": {"single_predicate": predicate}, "on_match": chain_action(chain)}
