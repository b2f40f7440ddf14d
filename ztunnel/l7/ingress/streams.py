# SPDX-License-Identifier: Apache-2.0
"""Listeners for TLS and TCP, which forward connections: TLSRoute and TCPRoute.

    TLS, Passthrough   a chain per route, selected by SNI; the backend gets the client's TLS
    TLS, Terminate     the same, with the listener's certificates; the backend gets the content
    TCP                one chain: the oldest route applies

Names for which a listener has no route are refused, even if a less specific listener of the port
has one: they belong to the most specific listener, as with HTTP.

Clients whose address no policy admits get a chain that closes the connection. Where policies
depend on more than the address, the backend is dialed once the client has sent something: Envoy's
filters decide then. Behind TLS that the listener terminates, it is dialed after the handshake.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ztunnel.l7.api.gateway import ListenerProtocol
from ztunnel.l7.api.stream_route import StreamRoute
from ztunnel.l7.config import ClusterRef, Json
from ztunnel.l7.ingress.attachment import AttachedRoute
from ztunnel.l7.ingress.hostnames import ANY, covers, most_specific
from ztunnel.l7.ingress.tls import TlsContext, downstream_tls, handshake_timeout
from ztunnel.l7.ingress.udp import udp_unit
from ztunnel.l7.ingress.units import ChainUnit, Known, StreamListener
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.routing.envoy.extensions import network_filter
from ztunnel.l7.routing.envoy.stream_routes import StreamTarget, stream_target
from ztunnel.l7.routing.protocols import service_port
from ztunnel.l7.routing.units import UNRESOLVED
from ztunnel.l7.security.filters import effective_policies, filters
from ztunnel.l7.security.networks import Admission, admission
from ztunnel.l7.telemetry import fields as telemetry
from ztunnel.l7.traffic.cluster import stream_limits

_STAT_PREFIX = "ingress"
_REFUSED = StreamTarget({"cluster": UNRESOLVED}, frozenset(), ())
_DENIED = StreamTarget({"cluster": "denied by policy"}, frozenset(), ())  # in the access log
_MAX_EARLY_BYTES = 16 << 10  # of a client, until the backend accepts the connection


class _Branch(NamedTuple):
    """Connections with one of these SNI names, or all others, and where they go.

    `networks`: of the clients; None for all.
    """

    name: str
    hostnames: tuple[str, ...]
    target: StreamTarget
    networks: tuple[str, ...] | None = None


def stream_unit(inputs: Inputs, known: Known, stream: StreamListener) -> ChainUnit:
    """Return the chains of a listener of protocol TLS or TCP, or the listener of one of UDP."""
    if stream.listener.listener.protocol is ListenerProtocol.UDP:
        return udp_unit(inputs, known, stream)
    if stream.listener.listener.protocol is ListenerProtocol.TLS:
        return _tls_unit(inputs, known, stream)
    if not stream.routes:
        return ChainUnit()
    target = _target(inputs, stream.routes[0])
    port = stream.listener.listener.port
    return _unit(inputs, known, port, [_Branch(stream.name, (ANY,), target)])


def closed_unit(name: str, hostname: str, others: Sequence[str]) -> ChainUnit:
    """Return a chain that refuses TLS to a hostname, if one of `others` covers the hostname."""
    if hostname == ANY or not any(covers(each, hostname) for each in others):
        return ChainUnit()
    fields = {"stat_prefix": _STAT_PREFIX, **_REFUSED.fields}
    chain = {
        "name": f"{name}|closed",
        "filter_chain_match": {"server_names": [hostname]},
        "filters": [network_filter("tcp_proxy", "tcp_proxy.v3.TcpProxy", **fields)],
    }
    return ChainUnit(chains=(chain,), inspect_tls=True)


def _tls_unit(inputs: Inputs, known: Known, stream: StreamListener) -> ChainUnit:
    tls = None
    if not stream.listener.listener.is_passthrough:
        tls = downstream_tls(inputs, known.spec, stream.listener)
        if tls.transport_socket is None:
            return ChainUnit(problems=tls.problems)
    port = stream.listener.listener.port
    return _unit(inputs, known, port, _branches(inputs, stream), tls, is_tls=True)


def _branches(inputs: Inputs, stream: StreamListener) -> list[_Branch]:
    """One branch per route, with the names that no older route and no other listener has."""
    own = stream.listener.listener.hostname
    claimed: dict[str, AttachedRoute] = {}
    for each in stream.routes:
        for hostname in each.hostnames:
            if most_specific(stream.siblings, hostname) == own:
                claimed.setdefault(hostname, each)
    found = []
    for each in stream.routes:
        names = tuple(name for name, route in claimed.items() if route is each)
        if names:
            obj = each.route.obj
            name = f"{stream.name}|{obj.kind}|{obj.namespace}/{obj.name}"
            opaque = stream.listener.listener.is_passthrough
            found.append(_Branch(name, names, _target(inputs, each, opaque=opaque)))
    is_covered = any(covers(each, own) for each in stream.siblings if each != own)
    if own not in claimed and is_covered:
        found.append(_Branch(f"{stream.name}|refused", (own,), _REFUSED))
    return found


def _target(inputs: Inputs, attached: AttachedRoute, *, opaque: bool = False) -> StreamTarget:
    route = attached.route
    assert isinstance(route, StreamRoute)
    return stream_target(inputs, None, route, opaque=opaque)


def _unit(
    inputs: Inputs,
    known: Known,
    port: int,
    branches: Sequence[_Branch],
    tls: TlsContext | None = None,
    *,
    is_tls: bool = False,
) -> ChainUnit:
    is_opaque = is_tls and tls is None
    destination = Destination(
        gateway=known.spec.key,
        protocol=Protocol.TLS if is_opaque else Protocol.TCP,
        edge=known.edge,
    )
    policies = filters(inputs, destination)
    admitted = admission(
        effective_policies(inputs, destination),
        port,
        has_sni=is_tls,
        is_proxied=known.topology.proxy_protocol,
    )
    chains = []
    for branch in _admitted(branches, admitted):
        mode = _connect_mode(is_exact=admitted.is_exact, is_terminated=tls is not None)
        last = _proxy(inputs, destination, branch.target, mode)
        chain: Json = {"name": branch.name, "filters": [*policies.network, last]}
        if match := _match(branch, is_tls=is_tls):
            chain["filter_chain_match"] = match
        if tls is not None:
            chain |= {"transport_socket": tls.transport_socket, **handshake_timeout()}
        chains.append(chain)
    return ChainUnit(
        chains=tuple(chains),
        clusters={each["name"]: each for each in policies.clusters} if chains else {},
        secrets=tls.secrets if tls is not None and chains else {},
        uses=frozenset(ref for branch in branches for ref in branch.target.uses),
        problems=(
            *policies.problems,
            *(tls.problems if tls is not None else ()),
            *(problem for branch in branches for problem in branch.target.problems),
        ),
        inspect_tls=is_tls,
    )


def _admitted(branches: Sequence[_Branch], admitted: Admission) -> Iterator[_Branch]:
    """The branches of admitted clients, and those that refuse all others."""
    if admitted.networks is None:
        yield from branches
        return
    for branch in branches:
        if admitted.networks:
            yield branch._replace(networks=admitted.networks)
        yield branch._replace(name=f"{branch.name}|denied", target=_DENIED)


def _match(branch: _Branch, *, is_tls: bool) -> Json:
    """Where TLS is expected, only TLS: a connection without a ClientHello has no name either."""
    match: Json = {"transport_protocol": "tls"} if is_tls else {}
    if ANY not in branch.hostnames:
        match["server_names"] = list(branch.hostnames)
    if branch.networks is not None:
        match["source_prefix_ranges"] = [_range(each) for each in branch.networks]
    return match


def _range(network: str) -> Json:
    address, _, length = network.partition("/")
    return {"address_prefix": address, "prefix_len": int(length)}


def _connect_mode(*, is_exact: bool, is_terminated: bool) -> Json:
    """When the backend is dialed; at once by default."""
    if is_exact and not is_terminated:
        return {}
    mode = "ON_DOWNSTREAM_TLS_HANDSHAKE" if is_exact else "ON_DOWNSTREAM_DATA"
    return {"upstream_connect_mode": mode, "max_early_data_bytes": _MAX_EARLY_BYTES}


def _proxy(inputs: Inputs, destination: Destination, target: StreamTarget, mode: Json) -> Json:
    return network_filter(
        "tcp_proxy",
        "tcp_proxy.v3.TcpProxy",
        stat_prefix=_STAT_PREFIX,
        **target.fields,
        **mode,
        **_limits(inputs, destination, target.uses),
        **telemetry.tcp(inputs, destination),
    )


def _limits(inputs: Inputs, destination: Destination, uses: frozenset[ClusterRef]) -> Json:
    """The DestinationRule's limits, if all connections go to one service port."""
    if len(uses) != 1:
        return {}
    (ref,) = uses
    service = inputs.mesh.service(ref.service)
    port = service_port(service, ref.port)
    if service is None or port is None:
        return {}
    one = Destination(
        gateway=destination.gateway, protocol=destination.protocol, service=service, port=port
    )
    return stream_limits(inputs, one)
