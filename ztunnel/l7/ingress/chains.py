# SPDX-License-Identifier: Apache-2.0
"""Filter chains of listeners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ztunnel.l7.api.gateway import ListenerProtocol
from ztunnel.l7.config import Filters, Json
from ztunnel.l7.ingress.attachment import AttachedRoute
from ztunnel.l7.ingress.hcm import request_manager
from ztunnel.l7.ingress.hostnames import ANY
from ztunnel.l7.ingress.listeners import EffectiveListener
from ztunnel.l7.ingress.streams import stream_unit
from ztunnel.l7.ingress.tls import downstream_tls, handshake_timeout, is_validating, quic_socket
from ztunnel.l7.ingress.units import ChainUnit, Known, StreamListener
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.problems import Problem, Severity, problem_of
from ztunnel.l7.security.filters import filters

HTTP_PROTOCOLS = (ListenerProtocol.HTTP, ListenerProtocol.HTTPS)


class ListenerChain(NamedTuple):
    """A listener with the name of its chain and, unless it is HTTP, its routes.

    `siblings`: the hostnames of all listeners of its port.
    """

    name: str
    listener: EffectiveListener
    routes: Sequence[AttachedRoute] = ()
    siblings: Sequence[str] = ()


def chain_unit(inputs: Inputs, known: Known, chain: ListenerChain) -> ChainUnit:
    """Return the chains of a listener."""
    gateway, listener = known.spec, chain.listener
    if listener.listener.protocol not in HTTP_PROTOCOLS:
        return stream_unit(inputs, known, StreamListener(*chain))
    destination = Destination(gateway=gateway.key, protocol=Protocol.HTTP, edge=known.edge)
    policies = filters(inputs, destination)
    manager = request_manager(inputs, destination, policies, chain.name, known.topology)
    found: Json = {"name": chain.name, "filters": [*policies.network, manager]}
    if listener.listener.protocol is ListenerProtocol.HTTP:
        return _unit(found, policies)
    tls = downstream_tls(inputs, gateway, listener)
    if tls.transport_socket is None:
        return ChainUnit(problems=(*policies.problems, *tls.problems))
    hostname = listener.listener.hostname
    match = {"server_names": [hostname]} if hostname != ANY else {}
    found |= {"filter_chain_match": match, "transport_socket": tls.transport_socket}
    found |= handshake_timeout()
    unit = _unit(found, policies, tls.secrets, tls.problems, inspect_tls=True)
    if not known.topology.http3:
        return unit
    manager = request_manager(inputs, destination, policies, chain.name, known.topology, quic=True)
    quic: Json = {
        "name": chain.name,
        "filters": [manager],
        "filter_chain_match": match,
        "transport_socket": quic_socket(tls.transport_socket),
    }
    if is_validating(tls.transport_socket):  # Envoy cannot validate clients of QUIC
        return replace(unit, problems=(*unit.problems, _no_quic(listener)))
    return replace(unit, quic=(quic,))


def _no_quic(listener: EffectiveListener) -> Problem:
    owner = listener.listener.owner
    return problem_of(
        owner,
        field=listener.listener.where,
        message="clients need certificates, which HTTP/3 cannot validate: HTTP/3 is off",
        severity=Severity.IGNORED,
        reason="UnsupportedValue",
    )


def _unit(
    chain: Json,
    policies: Filters,
    secrets: dict[str, Json] | None = None,
    problems: Iterable[Problem] = (),
    *,
    inspect_tls: bool = False,
) -> ChainUnit:
    return ChainUnit(
        chains=(chain,),
        clusters={each["name"]: each for each in policies.clusters},
        secrets=secrets or {},
        problems=(*policies.problems, *problems),
        inspect_tls=inspect_tls,
    )
