# SPDX-License-Identifier: Apache-2.0
"""The client addresses that policies admit to a port of an ingress gateway, as networks. Pure.

Envoy's network filters decide once a client has sent something. Until then, a server that sends
first, such as one of MySQL or SMTP, has sent its greeting already, and UDP has no such filters at
all. What policies decide by the client's address is therefore decided by the listener, too.

    boundaries of all networks in the rules ─▶ ranges in which every decision is the same
                                            ─▶ `evaluate` for one address of each ─▶ networks
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
    summarize_address_range,
)
from itertools import islice
from typing import NamedTuple

from ztunnel.l7.api.authorization_policy import Action, AuthorizationPolicy
from ztunnel.l7.api.policy_terms import HTTP_ONLY, Attribute, Term
from ztunnel.l7.security.custom import Resolved
from ztunnel.l7.security.evaluate import evaluate
from ztunnel.l7.security.request import Attributes, Connection
from ztunnel.mesh.model import SocketAddress

MAX_BOUNDARIES = 1024  # of networks in the rules: each needs an evaluation
MAX_NETWORKS = 4096  # of a listener
_CLIENT = frozenset((Attribute.SOURCE_IP, Attribute.REMOTE_IP))
# What is known of a client besides its address: the port, and that it has no identity.
_KNOWN = frozenset(
    {*_CLIENT, *HTTP_ONLY, Attribute.PORT}
    | {Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.ACCOUNT}
)
_FAMILIES = ((IPv4Address, 32), (IPv6Address, 128))


class Admission(NamedTuple):
    """Which clients may connect. `networks`: None for all.

    `is_exact`: nothing but the address matters. Otherwise, `networks` is None, and filters decide.
    """

    networks: tuple[str, ...] | None
    is_exact: bool


ALL = Admission(None, True)


def admission(
    resolved: Resolved, port: int, *, has_sni: bool = False, is_proxied: bool = False
) -> Admission:
    """Return the clients that the policies of an ingress gateway admit to a port.

    `has_sni`: clients may send a name, on which decisions may depend. `is_proxied`: a PROXY header
    has the client's address, which is not the source address of the connection then.
    """
    enforced = [each for each in resolved.policies if not each.dry_run]
    enforced = [each for each in enforced if each.action in (Action.ALLOW, Action.DENY)]
    if not enforced and not resolved.authorizers:
        return ALL
    known = _KNOWN if has_sni else _KNOWN | {Attribute.SNI}
    known = known - {Attribute.SOURCE_IP} if is_proxied else known
    terms = list(_terms(enforced))
    networks = {
        value
        for term in terms
        if term.attribute in _CLIENT
        for value in (*term.values, *term.excluded)
    }
    is_known = not resolved.authorizers and all(term.attribute in known for term in terms)
    if not is_known or 2 * len(networks) > MAX_BOUNDARIES:
        return Admission(None, False)
    found = _admitted(resolved, port, [ip_network(each) for each in networks])
    admitted = tuple(islice(found, MAX_NETWORKS + 1))
    if len(admitted) > MAX_NETWORKS:
        return Admission(None, False)
    return ALL if set(admitted) == {"0.0.0.0/0", "::/0"} else Admission(admitted, True)


def _terms(policies: Iterable[AuthorizationPolicy]) -> Iterator[Term]:
    for policy in policies:
        for rule in policy.rules:
            for clause in (*rule.sources, *rule.operations, rule.conditions):
                yield from clause


def _admitted(
    resolved: Resolved, port: int, networks: list[IPv4Network | IPv6Network]
) -> Iterator[str]:
    for family, bits in _FAMILIES:
        of_family = [each for each in networks if each.max_prefixlen == bits]
        starts = {0}
        for each in of_family:
            starts |= {int(each.network_address), int(each.broadcast_address) + 1}
        ordered = sorted(starts - {1 << bits})
        ranges: list[tuple[int, int]] = []
        for first, after in zip(ordered, [*ordered[1:], 1 << bits], strict=True):
            if not _is_admitted(resolved, port, str(family(first))):
                continue
            if ranges and ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], after)
            else:
                ranges.append((first, after))
        for first, after in ranges:
            for network in _summarized(family, first, after - 1):
                yield str(network)


def _summarized(
    family: type[IPv4Address] | type[IPv6Address], first: int, last: int
) -> Iterator[IPv4Network | IPv6Network]:
    if family is IPv4Address:
        return summarize_address_range(IPv4Address(first), IPv4Address(last))
    return summarize_address_range(IPv6Address(first), IPv6Address(last))


def _is_admitted(resolved: Resolved, port: int, address: str) -> bool:
    destination = SocketAddress("0.0.0.0", port)
    connection = Connection(source_ip=address, destination=destination)
    return evaluate(resolved, (), Attributes(connection, None), tcp=True).allowed
