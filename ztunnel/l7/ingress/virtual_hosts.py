# SPDX-License-Identifier: Apache-2.0
"""Virtual hosts of a listener: one per hostname at which routes attach.

Requests belong to the listener of the port with the most specific hostname (Gateway API, "HTTP
listener isolation"): a route of another listener does not get them. Names that a listener covers,
but no route of it, answer 404. Over TLS, names that belong to another listener than the one that
SNI selected answer 421 (RFC 9110, 15.5.20), so that a client opens another connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ztunnel.l7.api.gateway import ListenerProtocol
from ztunnel.l7.api.request_rules import RequestRoute, match_rank
from ztunnel.l7.config import Json
from ztunnel.l7.ingress.attachment import AttachedRoute
from ztunnel.l7.ingress.hostnames import ANY, most_specific
from ztunnel.l7.ingress.listeners import EffectiveListener
from ztunnel.l7.ingress.units import HostUnit
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.problems import Problem
from ztunnel.l7.routing.attachment import Route
from ztunnel.l7.routing.envoy.request_routes import RouteBuilder
from ztunnel.l7.routing.precedence import Entry, in_order

NOT_FOUND, MISDIRECTED = 404, 421
_HTTP3_MAX_AGE_S = 86400  # for which clients may remember HTTP/3: a day


@dataclass(frozen=True)
class Host:
    """One hostname of a listener, with its routes, oldest first."""

    hostname: str
    listener: EffectiveListener
    routes: tuple[Route, ...] = ()


def listener_hosts(
    listener: EffectiveListener, routes: Sequence[AttachedRoute], siblings: frozenset[str]
) -> tuple[Host, ...]:
    """Return the hosts of a listener; `siblings` are the hostnames of all listeners of the port.

    The listener's own hostname is always one of them.
    """
    own = listener.listener.hostname
    found: dict[str, list[Route]] = {own: []}
    for attached in routes:
        for hostname in attached.hostnames:
            if most_specific(siblings, hostname) == own:
                found.setdefault(hostname, []).append(attached.route)
    return tuple(Host(name, listener, tuple(each)) for name, each in found.items())


def host_unit(inputs: Inputs, host: Host) -> HostUnit:
    """Return the virtual host with the routes of all objects, in the order of precedence."""
    listener = host.listener.listener
    scheme = "https" if listener.protocol is ListenerProtocol.HTTPS else "http"
    builder = RouteBuilder(inputs, None, listener.port, scheme)
    requests = [each for each in host.routes if isinstance(each, RequestRoute)]
    routes = [builder.build(entry) for entry in in_precedence(requests)]
    problems: list[Problem] = [*builder.problems, *(p for r in requests for p in r.problems)]
    virtual_host = _virtual_host(host.hostname, [*routes, _answer(NOT_FOUND)])
    return HostUnit(virtual_host, frozenset(builder.uses), tuple(dict.fromkeys(problems)))


def in_precedence(routes: Sequence[RequestRoute]) -> list[Entry]:
    """Return all matches of the routes of a host, in the order in which they are tried.

    Routes of two kinds are compared by the matches that Envoy gets.
    """
    entries = in_order(routes)
    if len({route.obj.kind for route in routes}) < 2:
        return entries
    return sorted(entries, key=_common_rank)


def misdirected(hostnames: Iterable[str]) -> Json:
    """Return the virtual host for names that belong to other listeners of the port."""
    domains = [each or "*" for each in sorted(hostnames)]
    return {"name": "misdirected", "domains": domains, "routes": [_answer(MISDIRECTED)]}


def route_configuration(name: str, virtual_hosts: Sequence[Json], http3_port: int = 0) -> Json:
    """Return a route configuration; other hosts get 404.

    `http3_port`: responses announce HTTP/3 at it (RFC 9114, 3.1.1); 0 for none.
    """
    found: Json = {
        "name": name,
        "virtual_hosts": list(virtual_hosts),
        "validate_clusters": False,
        "ignore_port_in_host_matching": True,
    }
    if http3_port:
        value = f'h3=":{http3_port}"; ma={_HTTP3_MAX_AGE_S}'
        found["response_headers_to_add"] = [
            {
                "header": {"key": "alt-svc", "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ]
    return found


def _common_rank(entry: Entry) -> tuple[int, ...]:
    match = entry.match
    rank = match_rank(
        match.path_kind, match.path, match.method, len(match.headers), len(match.query)
    )
    return tuple(-part for part in rank)


def _virtual_host(hostname: str, routes: Sequence[Json]) -> Json:
    domain = "*" if hostname == ANY else hostname
    return {"name": domain, "domains": [domain], "routes": list(routes)}


def _answer(status: int) -> Json:
    return {"match": {"prefix": "/"}, "direct_response": {"status": status}}
