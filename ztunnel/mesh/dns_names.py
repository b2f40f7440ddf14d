# SPDX-License-Identifier: Apache-2.0
"""What a DNS name means in the mesh: a pure decision on the mesh state.

    the service's own name     its virtual addresses, or its ready endpoints' when headless
    <endpoint>.<service>       that endpoint: by its hostname, or its address with dashes
    _port._protocol.<service>  where that port is (SRV)
    anything else below a service of the cluster: there is no such name
    everything else: not ours, the pod's own resolver knows

A name is looked up as it was asked, as a short form of a service's (`web`, `web.shop`), and without
the search domains that a Kubernetes client appends to whatever it looks for: then the answer is an
alias. Exact names come before wildcards (`*.example.com`), longer wildcards before shorter ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ztunnel.mesh.model import DEFAULT_CLUSTER_DOMAIN, Endpoint, Service
from ztunnel.mesh.state import MeshState

MAX_LABELS = 32  # of a name that is looked for at all: Kubernetes' have five, a few more below


@dataclass(frozen=True, slots=True)
class Target:
    """An SRV record's content, with the addresses of its host."""

    port: int
    host: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """What the mesh knows of a name. `zone` is the domain that a denial is about.

    `alias` is what the asked name stands for, empty when it is the name itself. A name with neither
    addresses nor targets exists, and has no data. Addresses are of both families.
    """

    zone: str
    exists: bool = True
    alias: str = ""
    addresses: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()


def look_up(
    state: MeshState, namespace: str, name: str, domain: str = DEFAULT_CLUSTER_DOMAIN
) -> Entry | None:
    """What `name` (lower case, no final dot) is to a client in `namespace`; None: not ours."""
    if not name or name.count(".") >= MAX_LABELS:
        return None
    candidates = list(dict.fromkeys(_candidates(name, namespace, domain)))
    denied: Entry | None = None
    for candidate, alias in candidates:
        found = _exact(state, namespace, candidate, alias, domain)
        if found is not None and found.exists:
            return found
        denied = denied or found
    for candidate, alias in candidates:
        service = _wildcard(state, namespace, candidate)
        if service is not None and _is_answerable(service, domain):
            return _of_service(service, candidate if alias else "", domain)
    return denied


def _candidates(name: str, namespace: str, domain: str) -> Iterator[tuple[str, bool]]:
    """Names to look for, and whether what is found is an alias of what was asked."""
    yield from ((each, False) for each in _expansions(name, namespace, domain))
    for search in (f"{namespace}.svc.{domain}", f"svc.{domain}", domain):
        stripped = name.removesuffix(f".{search}")
        if stripped != name:
            yield from ((each, True) for each in _expansions(stripped, namespace, domain))


def _expansions(name: str, namespace: str, domain: str) -> Iterator[str]:
    """The name, and the service's full name of which it may be a short form."""
    yield name
    labels = name.split(".")
    if len(labels) == 1:
        yield f"{name}.{namespace}.svc.{domain}"
    elif len(labels) == 2:
        yield f"{name}.svc.{domain}"
    elif len(labels) == 3 and labels[2] == "svc":
        yield f"{name}.{domain}"


def _wildcard(state: MeshState, namespace: str, name: str) -> Service | None:
    """The longest wildcard that takes a name that no service has for itself."""
    if state.service_named(name, namespace) is not None:
        return None
    while "." in name:
        name = name.partition(".")[2]
        service = state.service_named(f"*.{name}", namespace)
        if service is not None:
            return service
    return None


def _exact(state: MeshState, namespace: str, name: str, alias: bool, domain: str) -> Entry | None:
    """A service, or something below one; an Entry that does not exist when only that is sure."""
    service = state.service_named(name, namespace)
    if service is not None:
        return _of_service(service, name if alias else "", domain)
    below, _, rest = name.partition(".")
    service = state.service_named(rest)
    if service is not None:
        return _of_endpoint(service, below, name if alias else "", domain)
    port, _, rest = rest.partition(".")
    service = state.service_named(rest)
    if service is not None and not alias:
        return _of_port(service, below, port, domain)
    return _deep_below(state, rest, domain) if not alias else None


def _of_service(service: Service, alias: str, domain: str) -> Entry | None:
    if not _is_answerable(service, domain):
        return None
    return Entry(_zone(service, domain), alias=alias, addresses=_addresses(service))


def _of_endpoint(service: Service, label: str, alias: str, domain: str) -> Entry | None:
    if not _is_of_cluster(service, domain):
        return None
    found = tuple(
        endpoint.address
        for endpoint in service.endpoints
        if endpoint.ready and label in (endpoint.hostname, _dashed(endpoint.address))
    )
    if label.startswith("_"):  # the protocol of an SRV name: an empty place in the tree
        found_port = any(_protocol(port.protocol) == label for port in service.ports)
        return Entry(_zone(service, domain), exists=found_port)
    return Entry(_zone(service, domain), exists=bool(found), alias=alias, addresses=found)


def _of_port(service: Service, name: str, protocol: str, domain: str) -> Entry | None:
    if not _is_of_cluster(service, domain):
        return None
    targets = tuple(_targets(service, name.removeprefix("_"), protocol))
    named = any(
        (f"_{port.name}", _protocol(port.protocol)) == (name, protocol) for port in service.ports
    )
    return Entry(_zone(service, domain), exists=named, targets=targets)


def _deep_below(state: MeshState, name: str, domain: str) -> Entry | None:
    """Nothing is that far below a service of the cluster."""
    while "." in name:
        name = name.partition(".")[2]
        service = state.service_named(name)
        if service is not None and _is_of_cluster(service, domain):
            return Entry(_zone(service, domain), exists=False)
    return None


def _targets(service: Service, name: str, protocol: str) -> Iterator[Target]:
    for port in service.ports:
        if not port.name or (port.name, _protocol(port.protocol)) != (name, protocol):
            continue
        if service.vips:
            yield Target(port.port, service.hostname, service.vips)
            continue
        for endpoint in service.endpoints:
            if endpoint.ready and port.name in endpoint.ports:
                host = f"{endpoint.hostname or _dashed(endpoint.address)}.{service.hostname}"
                yield Target(endpoint.ports[port.name], host, _of_host(service, endpoint))


def _of_host(service: Service, endpoint: Endpoint) -> tuple[str, ...]:
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
    """A host outside the cluster that has no address in the mesh is its own resolver's to know."""
    if _is_of_cluster(service, domain) or service.vips:
        return True
    return not service.own_dns and bool(_addresses(service))


def _is_of_cluster(service: Service, domain: str) -> bool:
    return service.hostname.endswith(f".svc.{domain}") and not service.hostname.startswith("*")


def _zone(service: Service, domain: str) -> str:
    return domain if _is_of_cluster(service, domain) else service.hostname.removeprefix("*.")


def _protocol(name: str) -> str:
    return f"_{name.lower()}"


def _dashed(address: str) -> str:
    """An address as a label, CoreDNS' form: 10-244-1-7, fd00--1."""
    return address.replace(".", "-").replace(":", "-")
