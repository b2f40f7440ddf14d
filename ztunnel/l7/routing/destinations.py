# SPDX-License-Identifier: Apache-2.0
"""The services and pods that a waypoint serves, each as a unit of the configuration."""

from __future__ import annotations

from ztunnel.l7.api.stream_route import StreamRoute
from ztunnel.l7.config import ClusterRef, Json, RouteTable
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.names import route_name
from ztunnel.l7.problems import Problem
from ztunnel.l7.routing.attachment import PRODUCER, PortRoutes, Route, port_routes
from ztunnel.l7.routing.envoy.chains import (
    by_detected_protocol,
    chain_action,
    http_chain,
    tcp_chain,
)
from ztunnel.l7.routing.envoy.clusters import pod_cluster
from ztunnel.l7.routing.envoy.dynamic_hosts import by_host_name, is_dynamic
from ztunnel.l7.routing.envoy.request_routes import RouteBuilder
from ztunnel.l7.routing.envoy.route_config import (
    ANY_HOST,
    forward,
    forward_all,
    port_route_configuration,
)
from ztunnel.l7.routing.envoy.stream_routes import StreamTarget, by_server_name, stream_target
from ztunnel.l7.routing.protocols import declared_protocol
from ztunnel.l7.routing.units import ANY_PORT, Branch, DestinationUnit
from ztunnel.l7.security.filters import filters
from ztunnel.l7.traffic.cluster import stream_limits
from ztunnel.l7.traffic.routes import replaced_problems, route_source, stream_source
from ztunnel.mesh.model import Service, ServicePort, Workload

_REQUESTS = (Protocol.HTTP, Protocol.HTTP2)
_STREAMS = ("TLSRoute", "TCPRoute")


def service_unit(
    inputs: Inputs, gateway: str, service: Service, routes: tuple[Route, ...]
) -> DestinationUnit:
    """Return the chains, routes and policies of all TCP ports of a service.

    `routes`: those that name the service as parent, oldest first.
    """
    return joined(
        [
            _Port(inputs, gateway, service, port, port_routes(routes, service, port)).unit()
            for port in service.ports
            if port.protocol == "TCP"
        ]
    )


def pod_unit(inputs: Inputs, gateway: str, pod: Workload) -> DestinationUnit:
    """Return the chains for connections to a pod's own addresses, at any port."""
    name = f"pod|{pod.uid}"
    chains: list[Json] = []
    clusters: dict[str, Json] = {name: pod_cluster(inputs, pod, name)}
    problems: list[Problem] = []
    for protocol in (Protocol.HTTP, Protocol.TCP):
        destination = Destination(gateway=gateway, protocol=protocol, workload=pod)
        policies = filters(inputs, destination)
        problems += policies.problems
        clusters |= {each["name"]: each for each in policies.clusters}
        chain = f"{name}|{protocol.value}"
        if protocol is Protocol.HTTP:
            chains.append(http_chain(inputs, destination, policies, chain, name))
        else:
            chains.append(tcp_chain(inputs, destination, policies, chain, {"cluster": name}))
    select = by_detected_protocol(f"{name}|http", f"{name}|tcp")
    return DestinationUnit(
        branches=tuple(Branch(ip, ANY_PORT, select, inspect_http=True) for ip in pod.addresses),
        chains=tuple(chains),
        routes={name: forward_all(name, name)},
        clusters=clusters,
        problems=tuple(problems),
    )


def joined(parts: list[DestinationUnit]) -> DestinationUnit:
    """Return one unit with the contents of several."""
    return DestinationUnit(
        branches=tuple(b for p in parts for b in p.branches),
        chains=tuple(c for p in parts for c in p.chains),
        routes={k: v for p in parts for k, v in p.routes.items()},
        clusters={k: v for p in parts for k, v in p.clusters.items()},
        uses=frozenset(u for p in parts for u in p.uses),
        problems=tuple(x for p in parts for x in p.problems),
    )


class _Port:
    """Compiles one port of a service."""

    def __init__(
        self,
        inputs: Inputs,
        gateway: str,
        service: Service,
        port: ServicePort,
        routes: PortRoutes,
    ) -> None:
        self._inputs = inputs
        self._gateway = gateway
        self._service = service
        self._port = port
        self._routes = routes
        self._name = route_name(service.key, port.port)
        self._own = ClusterRef(service.key, port.port)

    def unit(self) -> DestinationUnit:
        """Return the port's part of the configuration."""
        kind = self._routes.kind()
        if kind == "TLSRoute":
            return self._by_server_name()
        if kind == "TCPRoute":
            units = [self._stream(self._routes)]
            return self._selected(chain_action(self._name), units, is_raw=True)
        declared = declared_protocol(self._port)
        if declared is not None:
            units = [self._of(declared, self._name)]
            is_raw = declared is Protocol.TCP
            return self._selected(chain_action(self._name), units, is_raw=is_raw)
        if self._routes.explicit and self._routes.groups:
            return self._selected(chain_action(self._name), [self._of(Protocol.HTTP, self._name)])
        http, tcp = f"{self._name}|http", f"{self._name}|tcp"
        units = [self._of(Protocol.HTTP, http), self._of(Protocol.TCP, tcp)]
        return self._selected(by_detected_protocol(http, tcp), units, inspect_http=True)

    def _of(self, protocol: Protocol, chain: str) -> DestinationUnit:
        """Return the chain for a protocol, with the routes if it is HTTP."""
        if protocol not in _REQUESTS:
            return self._tcp(protocol, chain, self._stream_default(protocol))
        destination = self._destination(protocol)
        policies = filters(self._inputs, destination)
        builder = RouteBuilder(self._inputs, self._service, self._port.port)
        default = self._default(destination)
        domains = (self._service.hostname,) if is_dynamic(self._service) else ANY_HOST
        config = port_route_configuration(
            self._name, self._routes, builder, default.routes, domains
        )
        return DestinationUnit(
            chains=(http_chain(self._inputs, destination, policies, chain, self._name),),
            routes={self._name: config},
            clusters={each["name"]: each for each in policies.clusters},
            uses=frozenset(builder.uses) | default.uses,
            problems=(
                *policies.problems,
                *builder.problems,
                *default.problems,
                *self._route_problems(),
            ),
        )

    def _stream_default(self, protocol: Protocol) -> StreamTarget:
        """Return where connections go to which no route of Gateway API applies."""
        found = stream_source(self._inputs, self._destination(protocol))
        if found is not None:
            return StreamTarget(*found)
        return StreamTarget({"cluster": self._own.name}, frozenset((self._own,)), ())

    def _default(self, destination: Destination) -> RouteTable:
        """Return the routes for clients to which no route of Gateway API applies."""
        if PRODUCER in self._routes.groups:
            kind = self._routes.kind()
            return RouteTable((), problems=replaced_problems(self._inputs, destination, kind))
        found = route_source(self._inputs, destination)
        return found or RouteTable((forward(self._own.name),), frozenset((self._own,)))

    def _route_problems(self) -> list[Problem]:
        return [p for group in self._routes.groups.values() for r in group for p in r.problems]

    def _stream(self, routes: PortRoutes) -> DestinationUnit:
        """Return the chain of a TCPRoute; the oldest one applies."""
        route = routes.groups[PRODUCER][0]
        assert isinstance(route, StreamRoute)
        target = stream_target(self._inputs, self._service, route)
        return self._tcp(Protocol.TCP, self._name, target)

    def _by_server_name(self) -> DestinationUnit:
        units: list[DestinationUnit] = []
        chains: list[tuple[str, StreamRoute]] = []
        for route in self._routes.groups[PRODUCER]:
            assert isinstance(route, StreamRoute)
            chain = f"{self._name}|{route.obj.namespace}/{route.obj.name}"
            target = stream_target(self._inputs, self._service, route)
            units.append(self._tcp(Protocol.TLS, chain, target))
            chains.append((chain, route))
        return self._selected(by_server_name(chains), units, inspect_tls=True)

    def _tcp(self, protocol: Protocol, chain: str, target: StreamTarget) -> DestinationUnit:
        destination = self._destination(protocol)
        policies = filters(self._inputs, destination)
        fields = {**target.fields, **stream_limits(self._inputs, destination)}
        return DestinationUnit(
            chains=(tcp_chain(self._inputs, destination, policies, chain, fields),),
            clusters={each["name"]: each for each in policies.clusters},
            uses=target.uses,
            problems=(*policies.problems, *target.problems),
        )

    def _selected(
        self,
        on_match: Json,
        units: list[DestinationUnit],
        *,
        inspect_http: bool = False,
        inspect_tls: bool = False,
        is_raw: bool = False,
    ) -> DestinationUnit:
        """Return the units' contents, selected by the addresses of the service."""
        if is_dynamic(self._service) and not inspect_http and not self._is_http():
            on_match, inspect_tls = by_host_name(self._service, on_match), True
        is_own = self._service.namespace == self._gateway.partition("/")[0]
        branches = tuple(
            Branch(ip, self._port.port, on_match, inspect_http, inspect_tls, is_raw, is_own)
            for ip in (*self._service.vips, *self._service.networks)
        )
        return joined([DestinationUnit(branches=branches), *units])

    def _is_http(self) -> bool:
        return self._routes.kind() not in _STREAMS and declared_protocol(self._port) in _REQUESTS

    def _destination(self, protocol: Protocol) -> Destination:
        return Destination(
            gateway=self._gateway, protocol=protocol, service=self._service, port=self._port
        )
