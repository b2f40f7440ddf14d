# SPDX-License-Identifier: Apache-2.0
"""Compiles the configuration of an ingress gateway's Envoys.

    port with HTTP           one listener, one chain, one route configuration
    port with HTTPS and TLS  one listener, chains by SNI; HTTPS: a route configuration per chain
    port with TCP            one listener, one chain
    port with UDP            one listener

A listener that is not usable has no chain: connections to it are closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from ztunnel.l7.api.gateway import GatewaySpec, ListenerProtocol, parse_gateway
from ztunnel.l7.config import ClusterRef, GatewayConfig, Json
from ztunnel.l7.ingress.attachment import (
    AttachedRoute,
    AttachedRoutes,
    GatewayListeners,
    attached_routes,
    gateway_listeners,
    within_limit,
)
from ztunnel.l7.ingress.chains import HTTP_PROTOCOLS, ListenerChain, chain_unit
from ztunnel.l7.ingress.listeners import (
    EffectiveListener,
    ListenerAccepted,
    ListenerConflict,
)
from ztunnel.l7.ingress.pods import edge_of
from ztunnel.l7.ingress.port_listener import port_listener, quic_listener
from ztunnel.l7.ingress.streams import closed_unit
from ztunnel.l7.ingress.tls import backend_secrets, with_client_certificate
from ztunnel.l7.ingress.topology import topology_of
from ztunnel.l7.ingress.units import ChainUnit, HostUnit, Known
from ztunnel.l7.ingress.virtual_hosts import (
    Host,
    host_unit,
    listener_hosts,
    misdirected,
    route_configuration,
)
from ztunnel.l7.inputs import Destination, Edge, Inputs, Protocol
from ztunnel.l7.names import TypeUrl
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.routing.envoy.clusters import service_cluster, waypoint_cluster
from ztunnel.l7.routing.tracking import Memo
from ztunnel.l7.routing.units import ClusterUnit
from ztunnel.l7.telemetry import fields as telemetry

DEFECT: Final = "InternalError"  # reason of a problem that is a defect of the compiler

T = TypeVar("T")


@dataclass
class _Caches:
    """Units of the last compilation."""

    listeners: Memo[GatewayListeners] = field(default_factory=Memo)
    chains: Memo[ChainUnit] = field(default_factory=Memo)
    hosts: Memo[HostUnit] = field(default_factory=Memo)
    clusters: Memo[ClusterUnit] = field(default_factory=Memo)

    @property
    def _all(self) -> tuple[Memo[Any], ...]:
        return (self.listeners, self.chains, self.hosts, self.clusters)

    def start(self) -> None:
        """Begin a compilation."""
        for memo in self._all:
            memo.start()

    def finish(self) -> None:
        """End it: units that it did not use are dropped."""
        for memo in self._all:
            memo.finish()


class IngressCompiler:
    """Compiles one gateway repeatedly, as `ztunnel.l7.compile.GatewayCompiler` does."""

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        self._caches = _Caches()
        self._edge: Edge | None = None

    @property
    def recompiled(self) -> tuple[int, int]:
        """The numbers of chains and virtual hosts, and of clusters, that the last call compiled."""
        caches = self._caches
        return caches.chains.computed + caches.hosts.computed, caches.clusters.computed

    def compile(self, inputs: Inputs, gateway: L7Object, index: RouteIndex) -> GatewayConfig:
        """Return the configuration. `index` is refreshed from `inputs.store`."""
        self._caches.start()
        known = self._caches.listeners.get(
            "listeners",
            inputs,
            lambda tracked: gateway_listeners(tracked.store, gateway),
            (gateway,),
        )
        spec = parse_gateway(gateway)
        routes, exceeding = within_limit(attached_routes(inputs.store, known, index))
        edge, topology = edge_of(inputs, gateway), topology_of(inputs, gateway)
        if self._edge != edge:
            self._edge = edge
        around = Known(spec, self._edge, topology)
        found = _Compilation(self._caches, inputs, around, routes)
        found.problems |= {*topology.problems, *spec.problems, *index.problems, *known.problems}
        found.problems |= {*_listener_problems(known.listeners), *exceeding}
        closed = _without_certificate(known.listeners)
        for port, listeners in _by_port(known.listeners).items():
            found.add_port(port, listeners, closed.get(port, ()))
        config = found.config()
        self._caches.finish()
        return config


class _Compilation:
    """One compilation: collects the parts of the configuration."""

    def __init__(
        self, caches: _Caches, inputs: Inputs, known: Known, routes: AttachedRoutes
    ) -> None:
        self._caches = caches
        self._inputs = inputs
        self._known = known
        self._routes = routes
        clients = Destination(gateway=known.spec.key, protocol=Protocol.TLS, edge=known.edge)
        self._refused_log = telemetry.refused(inputs, clients)
        self._listeners: dict[str, Json] = {}
        self._configurations: dict[str, Json] = {}
        self._clusters: dict[str, Json] = {}
        self._endpoints: dict[str, Json] = {}
        self._secrets: dict[str, Json] = {}
        self._uses: set[ClusterRef] = set()
        self.problems: set[Problem] = set()

    def add_port(
        self,
        port: int,
        listeners: Sequence[EffectiveListener],
        closed: Sequence[EffectiveListener],
    ) -> None:
        """Add the usable listeners of a port. `closed`: others that keep their hostnames."""
        names = frozenset(
            e.listener.hostname
            for e in (*listeners, *closed)
            if e.listener.protocol in HTTP_PROTOCOLS
        )
        http = [e for e in listeners if e.listener.protocol is ListenerProtocol.HTTP]
        own = [each.listener.hostname for each in listeners]
        has_udp = any(e.listener.protocol is ListenerProtocol.UDP for e in listeners)
        units: list[ChainUnit] = []
        if http:
            self._add_routes(f"http|{port}", http, names)
            units.append(self._chain(f"http|{port}", http[0], (), ()))
        for each in listeners:
            name = _chain_name(each)
            if each.listener.protocol is ListenerProtocol.HTTP:
                continue
            if each.listener.protocol is ListenerProtocol.HTTPS:
                unit = self._chain(name, each, (), ())
                if has_udp and unit.quic:
                    unit = _without_quic(unit, each)
                self._add_routes(name, [each], names, http3_port=port if unit.quic else 0)
            else:
                unit = self._chain(name, each, self._routes[each.key], (*listeners, *closed))
            units.append(unit)
            if each.terminates_tls and not unit.chains:
                others = [hostname for hostname in own if hostname != each.listener.hostname]
                units.append(closed_unit(name, each.listener.hostname, others))
        units += [closed_unit(_chain_name(e), e.listener.hostname, own) for e in closed]
        for unit in units:
            self._add(unit)
        for found in (
            port_listener(self._known, port, units, self._refused_log),
            quic_listener(self._known, port, units),
        ):
            if found is not None:
                self._listeners[found["name"]] = found

    def config(self) -> GatewayConfig:
        """Return everything that was added, with the clusters that it uses."""
        inputs = self._inputs
        clusters = {each["name"]: each for each in telemetry.clusters(inputs)} | self._clusters
        endpoints = dict(self._endpoints)
        problems = {*self.problems, *telemetry.problems(inputs)}
        for ref in sorted(self._uses):
            unit = self._cluster(ref)
            problems |= set(unit.problems)
            if unit.cluster is not None and unit.endpoints is not None:
                clusters[ref.name], endpoints[ref.name] = unit.cluster, unit.endpoints
        resources = {
            TypeUrl.LISTENER: self._listeners,
            TypeUrl.ROUTE: self._configurations,
            TypeUrl.CLUSTER: clusters,
            TypeUrl.ENDPOINT: endpoints,
            TypeUrl.SECRET: self._secrets | backend_secrets(inputs.store, self._known.spec),
        }
        return GatewayConfig(resources, tuple(sorted(problems)))

    def _add(self, unit: ChainUnit) -> None:
        self._clusters |= unit.clusters
        self._endpoints |= unit.endpoints
        self._secrets |= unit.secrets
        self._uses |= unit.uses
        self.problems |= set(unit.problems)
        if unit.udp is not None:
            self._listeners[unit.udp["name"]] = unit.udp

    def _add_routes(
        self,
        name: str,
        listeners: Sequence[EffectiveListener],
        siblings: frozenset[str],
        *,
        http3_port: int = 0,
    ) -> None:
        """Add the routes of listeners that share a chain; `siblings`: all hostnames of the port."""
        virtual_hosts: list[Json] = []
        for listener in listeners:
            for host in listener_hosts(listener, self._routes[listener.key], siblings):
                unit = self._host(name, host)
                virtual_hosts.append(unit.virtual_host)
                self._uses |= unit.uses
                self.problems |= set(unit.problems)
        others = siblings - {each.listener.hostname for each in listeners}
        if others:
            virtual_hosts.append(misdirected(others))
        self._configurations[name] = route_configuration(name, virtual_hosts, http3_port)

    def _host(self, name: str, host: Host) -> HostUnit:
        return self._caches.hosts.get(
            (name, *host.listener.key, host.hostname),
            self._inputs,
            lambda tracked: _guarded(
                lambda: host_unit(tracked, host),
                host.listener.listener.owner,
                lambda problem: HostUnit(host_unit_error(host), problems=(problem,)),
            ),
            (host.listener, *host.routes),
        )

    def _chain(
        self,
        name: str,
        listener: EffectiveListener,
        routes: Sequence[AttachedRoute],
        siblings: Sequence[EffectiveListener],
    ) -> ChainUnit:
        hostnames = tuple(each.listener.hostname for each in siblings)
        chain = ListenerChain(name, listener, routes, hostnames)
        return self._caches.chains.get(
            name,
            self._inputs,
            lambda tracked: _guarded(
                lambda: chain_unit(tracked, self._known, chain),
                listener.listener.owner,
                lambda problem: ChainUnit(problems=(problem,)),
            ),
            (
                self._known.spec.obj,
                self._known.edge,
                listener,
                *(each.route for each in routes),
                *siblings,
            ),
        )

    def _cluster(self, ref: ClusterRef) -> ClusterUnit:
        namespace, _, name = ref.service.partition("/")
        owner = L7Object(kind="Service", namespace=namespace, name=name)
        return self._caches.clusters.get(
            ref,
            self._inputs,
            lambda tracked: _guarded(
                lambda: _edge_cluster(tracked, self._known.spec, ref),
                owner,
                lambda problem: ClusterUnit(None, None, (problem,)),
            ),
            (self._known.spec.obj if self._known.spec.backend_certificate is not None else None,),
        )


def _edge_cluster(inputs: Inputs, gateway: GatewaySpec, ref: ClusterRef) -> ClusterUnit:
    """The cluster of a service: its waypoint, or its endpoints."""
    through_waypoint = waypoint_cluster(inputs, ref)
    if through_waypoint is not None:
        return through_waypoint
    unit = service_cluster(inputs, gateway.key, ref, at_edge=True)
    return with_client_certificate(inputs, gateway, ref, unit)


def host_unit_error(host: Host) -> Json:
    """Return a virtual host that answers 500."""
    domain = host.hostname or "*"
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 500}}
    return {"name": domain, "domains": [domain], "routes": [answer]}


def _chain_name(listener: EffectiveListener) -> str:
    """Names of one ListenerSet and those of another are distinct."""
    owner = listener.listener.owner
    prefix = "" if owner.kind == "Gateway" else f"{owner.namespace}/{owner.name}/"
    return f"{listener.listener.port}|{prefix}{listener.listener.name}"


def _by_port(listeners: Iterable[EffectiveListener]) -> dict[int, list[EffectiveListener]]:
    found: dict[int, list[EffectiveListener]] = {}
    for each in listeners:
        if each.is_usable:
            found.setdefault(each.listener.port, []).append(each)
    return found


def _without_certificate(
    listeners: Iterable[EffectiveListener],
) -> dict[int, list[EffectiveListener]]:
    """The listeners that only lack a certificate or authorities, by port.

    Their hostnames must not fall to less specific listeners, which may belong to others.
    """
    accepted = (ListenerAccepted.ACCEPTED, ListenerAccepted.NO_VALID_CA)
    found: dict[int, list[EffectiveListener]] = {}
    for each in listeners:
        is_valid = each.accepted in accepted and each.conflicted is ListenerConflict.NONE
        if each.terminates_tls and is_valid and not each.is_usable:
            found.setdefault(each.listener.port, []).append(each)
    return found


def _without_quic(unit: ChainUnit, listener: EffectiveListener) -> ChainUnit:
    """A UDP listener has the port: of two, Envoy would reject one."""
    message = f"port {listener.listener.port} has a UDP listener: HTTP/3 is off"
    problem = _problem(listener.listener.owner, message, "PortUnavailable", listener.listener.where)
    return replace(unit, quic=(), problems=(*unit.problems, problem))


def _listener_problems(listeners: Iterable[EffectiveListener]) -> Iterable[Problem]:
    for each in listeners:
        texts = {
            each.accepted: each.accepted_message,
            each.conflicted: each.conflicted_message,
            each.resolved: each.resolved_message,
        }
        for reason, message in texts.items():
            if message and message != each.listener.error:  # the parser's problem already
                # messages for conditions name the field themselves
                where = "" if message.startswith("spec.") else each.listener.where
                yield _problem(each.listener.owner, message, reason, where)


def _guarded(make: Callable[[], T], owner: L7Object, fallback: Callable[[Problem], T]) -> T:
    """The result; after a defect, one that refuses what it concerns, and nothing else."""
    try:
        return make()
    except Exception as error:
        message = f"not compiled, requests are refused: {type(error).__name__}: {error}"[:512]
        return fallback(_problem(owner, message, DEFECT))


def _problem(owner: L7Object, message: str, reason: str, where: str = "") -> Problem:
    return problem_of(
        owner,
        field=where,
        message=message,
        severity=Severity.ERROR,
        reason=reason,
    )
