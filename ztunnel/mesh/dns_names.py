# SPDX-License-Identifier: Apache-2.0
"""Resolves a DNS name against the mesh state. Pure.

    service name               its virtual addresses; the ready endpoints of a headless service
    <endpoint>.<service>       the endpoint, by its hostname or its address with dashes
    _port._protocol.<service>  SRV targets of the port
    other names below a Service of the cluster: NXDOMAIN
    all other names: not in the mesh; the pod's own resolver answers

A name is looked up as queried, expanded from the short form of a Service (`web`, `web.shop`), and
with the search domains removed that Kubernetes clients append; in the last case the answer is an
alias (CNAME). Exact names take precedence over wildcards (`*.example.com`), longer wildcards over
shorter ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ztunnel.mesh.model import DEFAULT_CLUSTER_DOMAIN, Endpoint, Service
from ztunnel.mesh.state import MeshState

MAX_LABELS = 32  # longer names are not looked up; names of Kubernetes endpoints have six labels


@dataclass(frozen=True, slots=True)
class SrvTarget:
    """The content of an SRV record, with the addresses of its host."""

    port: int
    host: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """The result of a lookup.

    `zone` is the owner of the SOA record in a negative response. `alias` is the canonical name,
    empty when the queried name is canonical. A name without addresses and targets exists but has
    no data. `addresses` contains both families.
    """

    zone: str
    exists: bool = True
    alias: str = ""
    addresses: tuple[str, ...] = ()
    targets: tuple[SrvTarget, ...] = ()


def lookup(
    state: MeshState, namespace: str, name: str, domain: str = DEFAULT_CLUSTER_DOMAIN
) -> DnsAnswer | None:
    """Resolve `name` (lower case, no final dot) for `namespace`; None: not in the mesh."""
    if not name or name.count(".") >= MAX_LABELS:
        return None
    candidates = list(dict.fromkeys(_candidates(name, namespace, domain)))
    denied: DnsAnswer | None = None
    for candidate, alias in candidates:
        found = _exact(state, namespace, candidate, alias, domain)
        if found is not None and found.exists:
            return found
        denied = denied or found
    if denied is not None:  # no wildcard covers a name below a Service
        return denied
    for candidate, alias in candidates:
        service = _wildcard(state, namespace, candidate)
        if service is not None and _is_answerable(service, domain):
            return _service_answer(service, candidate if alias else "", domain)
    return None


def _candidates(name: str, namespace: str, domain: str) -> Iterator[tuple[str, bool]]:
    """Yield the names to look up, and whether a match is an alias of the queried name."""
    yield from ((each, False) for each in _expansions(name, namespace, domain))
    for search in (f"{namespace}.svc.{domain}", f"svc.{domain}", domain):
        stripped = name.removesuffix(f".{search}")
        if stripped != name:
            yield from ((each, True) for each in _expansions(stripped, namespace, domain))


def _expansions(name: str, namespace: str, domain: str) -> Iterator[str]:
    """Yield the name, and the full service name that it may abbreviate."""
    yield name
    labels = name.split(".")
    if len(labels) == 1:
        yield f"{name}.{namespace}.svc.{domain}"
    elif len(labels) == 2:
        yield f"{name}.svc.{domain}"
    elif len(labels) == 3 and labels[2] == "svc":
        yield f"{name}.{domain}"


def _wildcard(state: MeshState, namespace: str, name: str) -> Service | None:
    """Return the service of the longest matching wildcard, unless a service has the exact name."""
    if state.service_by_hostname(name, namespace) is not None:
        return None
    while "." in name:
        name = name.partition(".")[2]
        service = state.service_by_hostname(f"*.{name}", namespace)
        if service is not None:
            return service
    return None


def _exact(
    state: MeshState, namespace: str, name: str, alias: bool, domain: str
) -> DnsAnswer | None:
    """Resolve a service or a name below one; `exists=False` if the name is certainly absent."""
    service = state.service_by_hostname(name, namespace)
    if service is not None:
        return _service_answer(service, name if alias else "", domain)
    below, _, rest = name.partition(".")
    service = state.service_by_hostname(rest)
    if service is not None:
        return _endpoint_answer(service, below, name if alias else "", domain)
    port, _, rest = rest.partition(".")
    service = state.service_by_hostname(rest)
    if service is not None and not alias:
        return _port_answer(service, below, port, domain)
    return _deep_name_answer(state, rest, domain) if not alias else None


def _service_answer(service: Service, alias: str, domain: str) -> DnsAnswer | None:
    if not _is_answerable(service, domain):
        return None
    return DnsAnswer(_zone(service, domain), alias=alias, addresses=_addresses(service))


def _endpoint_answer(service: Service, label: str, alias: str, domain: str) -> DnsAnswer | None:
    if not _is_cluster_service(service, domain):
        return None
    found = tuple(
        endpoint.address
        for endpoint in service.endpoints
        if endpoint.ready and label in (endpoint.hostname, _dashed(endpoint.address))
    )
    if label.startswith("_"):  # `_tcp.<service>`: an empty non-terminal
        found_port = any(_protocol(port.protocol) == label for port in service.ports)
        return DnsAnswer(_zone(service, domain), exists=found_port)
    return DnsAnswer(_zone(service, domain), exists=bool(found), alias=alias, addresses=found)


def _port_answer(service: Service, name: str, protocol: str, domain: str) -> DnsAnswer | None:
    if not _is_cluster_service(service, domain):
        return None
    targets = tuple(_targets(service, name.removeprefix("_"), protocol))
    named = any(
        (f"_{port.name}", _protocol(port.protocol)) == (name, protocol) for port in service.ports
    )
    return DnsAnswer(_zone(service, domain), exists=named, targets=targets)


def _deep_name_answer(state: MeshState, name: str, domain: str) -> DnsAnswer | None:
    """Answer NXDOMAIN for names too deep below a Service of the cluster."""
    while "." in name:
        name = name.partition(".")[2]
        service = state.service_by_hostname(name)
        if service is not None and _is_cluster_service(service, domain):
            return DnsAnswer(_zone(service, domain), exists=False)
    return None


def _targets(service: Service, name: str, protocol: str) -> Iterator[SrvTarget]:
    for port in service.ports:
        if not port.name or (port.name, _protocol(port.protocol)) != (name, protocol):
            continue
        if service.vips:
            yield SrvTarget(port.port, service.hostname, service.vips)
            continue
        for endpoint in service.endpoints:
            if endpoint.ready and port.name in endpoint.ports:
                host = f"{endpoint.hostname or _dashed(endpoint.address)}.{service.hostname}"
                yield SrvTarget(endpoint.ports[port.name], host, _host_addresses(service, endpoint))


def _host_addresses(service: Service, endpoint: Endpoint) -> tuple[str, ...]:
    if not endpoint.hostname:
        return (endpoint.address,)
    return tuple(
        each.address
        for each in service.endpoints
        if each.ready and each.hostname == endpoint.hostname
    )


def _addresses(service: Service) -> tuple[str, ...]:
    if service.vips:
        return service.vips
    return tuple(endpoint.address for endpoint in service.endpoints if endpoint.ready)


def _is_answerable(service: Service, domain: str) -> bool:
    """Return False for an external host without addresses in the mesh: its own resolver answers.

    Names that a waypoint resolves have no address before a virtual one is allocated: the answer of
    another resolver would lead past the waypoint.
    """
    if service.dynamic_ports and service.waypoint:
        return True
    if _is_cluster_service(service, domain) or service.vips:
        return True
    return not service.upstream_dns and bool(_addresses(service))


def _is_cluster_service(service: Service, domain: str) -> bool:
    return service.hostname.endswith(f".svc.{domain}") and not service.hostname.startswith("*")


def _zone(service: Service, domain: str) -> str:
    return domain if _is_cluster_service(service, domain) else service.hostname.removeprefix("*.")


def _protocol(name: str) -> str:
    return f"_{name.lower()}"


def _dashed(address: str) -> str:
    """Format an address as a label, as CoreDNS does: 10-244-1-7, fd00--1."""
    return address.replace(".", "-").replace(":", "-")
