# SPDX-License-Identifier: Apache-2.0
"""The services and pods that a waypoint serves, each as a unit of the configuration."""

from __future__ import annotations

from ztunnel.l7.config import Json
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.names import route_name
from ztunnel.l7.problems import Problem
from ztunnel.l7.routing.chains import by_detected_protocol, chain_action, http_chain, tcp_chain
from ztunnel.l7.routing.clusters import pod_cluster
from ztunnel.l7.routing.protocols import declared_protocol
from ztunnel.l7.routing.route_config import forward_all
from ztunnel.l7.routing.units import ANY_PORT, Branch, ClusterRef, DestinationUnit
from ztunnel.l7.security.filters import filters
from ztunnel.mesh.model import Service, ServicePort, Workload


def service_unit(inputs: Inputs, gateway: str, service: Service) -> DestinationUnit:
    """Return the chains, routes and policies of all TCP ports of a service."""
    parts = [
        _service_port(inputs, gateway, service, port)
        for port in service.ports
        if port.protocol == "TCP"
    ]
    return _joined(parts)


def pod_unit(inputs: Inputs, gateway: str, pod: Workload) -> DestinationUnit:
    """Return the chains for connections to a pod's own addresses, at any port."""
    name = f"pod|{pod.uid}"
    chains: list[Json] = []
    clusters: dict[str, Json] = {}
    problems: list[Problem] = []
    for protocol in (Protocol.HTTP, Protocol.TCP):
        destination = Destination(gateway=gateway, protocol=protocol, workload=pod)
        policies = filters(inputs, destination)
        problems += policies.problems
        clusters |= {each["name"]: each for each in policies.clusters}
        chain_name = f"{name}|{protocol.value}"
        if protocol is Protocol.HTTP:
            chains.append(http_chain(inputs, destination, policies, chain_name, name))
        else:
            chains.append(tcp_chain(inputs, destination, policies, chain_name, {"cluster": name}))
    select = by_detected_protocol(f"{name}|http", f"{name}|tcp")
    return DestinationUnit(
        branches=tuple(Branch(ip, ANY_PORT, select, inspect_http=True) for ip in pod.addresses),
        chains=tuple(chains),
        routes={name: forward_all(name, name)},
        clusters={name: pod_cluster(inputs, pod, name), **clusters},
        problems=tuple(problems),
    )


def _service_port(
    inputs: Inputs, gateway: str, service: Service, port: ServicePort
) -> DestinationUnit:
    declared = declared_protocol(port)
    wanted = (Protocol.HTTP, Protocol.TCP) if declared is None else (declared,)
    name = route_name(service.key, port.port)
    own = ClusterRef(service.key, port.port)
    units = []
    for protocol in wanted:
        destination = Destination(gateway=gateway, protocol=protocol, service=service, port=port)
        policies = filters(inputs, destination)
        chain_name = name if declared else f"{name}|{protocol.value}"
        routes = {}
        if protocol in _ROUTED:
            chain = http_chain(inputs, destination, policies, chain_name, name)
            routes[name] = forward_all(name, own.name)
        else:
            chain = tcp_chain(inputs, destination, policies, chain_name, {"cluster": own.name})
        units.append(
            DestinationUnit(
                chains=(chain,),
                routes=routes,
                clusters={each["name"]: each for each in policies.clusters},
                uses=frozenset((own,)),
                problems=policies.problems,
            )
        )
    if declared is None:
        select = by_detected_protocol(f"{name}|http", f"{name}|tcp")
    else:
        select = chain_action(name)
    branches = tuple(
        Branch(ip, port.port, select, inspect_http=declared is None) for ip in service.vips
    )
    return _joined([DestinationUnit(branches=branches), *units])


_ROUTED = (Protocol.HTTP, Protocol.HTTP2)


def _joined(parts: list[DestinationUnit]) -> DestinationUnit:
    return DestinationUnit(
        branches=tuple(b for p in parts for b in p.branches),
        chains=tuple(c for p in parts for c in p.chains),
        routes={k: v for p in parts for k, v in p.routes.items()},
        clusters={k: v for p in parts for k, v in p.clusters.items()},
        uses=frozenset(u for p in parts for u in p.uses),
        problems=tuple(x for p in parts for x in p.problems),
    )
