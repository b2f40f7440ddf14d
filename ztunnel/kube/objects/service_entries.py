# SPDX-License-Identifier: Apache-2.0
"""Validates and parses ServiceEntry objects. Pure.

    resolution NONE     connections keep their destination; the entry lists permitted destinations
    resolution STATIC   to the addresses of endpoints, or of pods that a workloadSelector selects
    resolution DNS      to the addresses that the node resolves endpoint names or hosts to
    DYNAMIC_DNS         the waypoint resolves the name of each request (Host) or connection (SNI)

An invalid entry is rejected as a whole (TranslateError). Source of the semantics: Istio's
networking.istio.io/v1 reference; `warning` names what a node does not support.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network

from ztunnel.kube.objects.fields import Fields, Object, key_of
from ztunnel.mesh.address import AddressError, canonical
from ztunnel.mesh.model import ServicePort

MAX_HOSTS = 256  # this and the next two are limits of Istio's CRD
MAX_ADDRESSES = 256
MAX_PORTS = 256
MAX_ENDPOINTS = 4096  # the limit of Istio's CRD
MAX_EXPORTS = 256  # namespaces in exportTo
MAX_ALLOCATED = 2 * MAX_HOSTS  # addresses in the status: one of each family for a host
AUTO_ALLOCATE = "networking.istio.io/enable-autoallocate-ip"  # label; "false" opts out
NO_NAMESPACE = "~"  # exportTo: visible to no namespace

_HOST = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
)
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PROTOCOLS = frozenset(
    {"TCP", "TLS", "HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "MONGO", "MYSQL", "REDIS", "UDP"}
)
_RESOLUTIONS = {
    "NONE": "NONE",
    "STATIC": "STATIC",
    "DNS": "DNS",
    "DNS_ROUND_ROBIN": "DNS",
    "DYNAMIC_DNS": "DYNAMIC_DNS",
}
# Requests and connections that carry a name, which the waypoint resolves
_NAMED_PROTOCOLS = frozenset({"http", "http2", "grpc", "grpc-web", "https", "tls"})
_IGNORED = ("labels", "network", "locality", "weight", "serviceAccount")  # fields of endpoints
_LOCATIONS = frozenset({"", "MESH_EXTERNAL", "MESH_INTERNAL"})


@dataclass(frozen=True, slots=True)
class EntryEndpoint:
    """`address` is a canonical IP address or a DNS name; `ports`: target port by port name."""

    address: str
    ports: dict[str, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A parsed ServiceEntry. `export_to` is empty for all namespaces; `selector` is None without a
    workloadSelector; `targets`: target ports of endpoints that have no `ports` of their own.

    `vips`: the virtual addresses of all hosts (spec.addresses); `host_vips`: those of one host,
    which were allocated in the status and apply without the former."""

    namespace: str
    name: str
    hosts: tuple[str, ...]
    vips: tuple[str, ...]
    host_vips: dict[str, tuple[str, ...]]
    networks: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    targets: dict[str, int]
    resolution: str
    endpoints: tuple[EntryEndpoint, ...]
    selector: dict[str, str] | None
    export_to: tuple[str, ...]
    warning: str
    labels: dict[str, str]

    def vips_of(self, host: str) -> tuple[str, ...]:
        """The virtual addresses of one of the hosts."""
        return self.vips or self.host_vips.get(host, ())

    @property
    def all_vips(self) -> set[str]:
        """The virtual addresses of all hosts."""
        return {vip for host in self.hosts for vip in self.vips_of(host)}

    @property
    def wants_addresses(self) -> bool:
        """Whether virtual addresses are to be allocated for the hosts, as in Istio.

        UDP does not pass the proxy, so that a virtual address would make UDP ports unreachable.
        """
        return (
            self.resolution != "NONE"
            and not self.vips
            and _auto_allocates(self.labels)
            and all(port.protocol == "TCP" for port in self.ports)
        )


def read_entry(obj: Object, cluster_domain: str) -> Entry:
    """Validate and parse a ServiceEntry. Raises TranslateError."""
    key = key_of(obj)
    fields = Fields(obj, f"{key}: ")
    spec = fields.mapping("spec")
    spec.allow_only(
        *("hosts", "addresses", "ports", "location", "resolution", "endpoints"),
        *("workloadSelector", "exportTo", "subjectAltNames"),
    )
    resolution = _RESOLUTIONS.get(spec.string("resolution") or "NONE")
    if resolution is None:
        raise spec.error("resolution", "NONE, STATIC, DNS, DNS_ROUND_ROBIN or DYNAMIC_DNS")
    if spec.string("location") not in _LOCATIONS:
        raise spec.error("location", "MESH_EXTERNAL or MESH_INTERNAL")
    hosts = _hosts(spec, cluster_domain)
    vips, networks = _addresses(spec, resolution)
    labels = fields.mapping("metadata").labels("labels")
    allocated = resolution != "NONE" and not vips and _auto_allocates(labels)
    ports, targets = _ports(spec)
    endpoints = _endpoints(spec, resolution, targets)
    selector = _selector(spec)
    _check_destinations(spec, resolution, hosts, bool(endpoints), selector is not None)
    if resolution == "DYNAMIC_DNS":
        _check_dynamic(spec, ports)
    return Entry(
        namespace=key.namespace,
        name=key.name,
        hosts=hosts,
        vips=vips,
        host_vips=_allocated(fields.mapping("status"), hosts) if allocated else {},
        networks=networks,
        ports=ports,
        targets=targets,
        resolution=resolution,
        endpoints=endpoints,
        selector=selector,
        export_to=_export_to(spec, key.namespace),
        warning=_warning(spec, str(key), resolution, networks),
        labels=labels,
    )


def _auto_allocates(labels: dict[str, str]) -> bool:
    return labels.get(AUTO_ALLOCATE, "").lower() != "false"


def _hosts(spec: Fields, cluster_domain: str) -> tuple[str, ...]:
    hosts = tuple(dict.fromkeys(host.lower().rstrip(".") for host in spec.strings("hosts")))
    if not 0 < len(hosts) <= MAX_HOSTS:
        raise spec.error("hosts", f"one to {MAX_HOSTS} names")
    for host in hosts:
        if len(host) > 253 or not _HOST.fullmatch(host):
            raise spec.error(
                "hosts", "fully qualified names such as api.example.com, *.example.com"
            )
        if host.endswith(f".{cluster_domain}"):
            raise spec.error("hosts", f"no names below {cluster_domain}, which belong to Services")
    return hosts


def _addresses(spec: Fields, resolution: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Virtual addresses; for resolution NONE, networks instead."""
    addresses = spec.strings("addresses")
    if len(addresses) > MAX_ADDRESSES:
        raise spec.error("addresses", f"at most {MAX_ADDRESSES}")
    found = [_network(text, spec) for text in addresses]
    if resolution == "NONE":
        return (), tuple(dict.fromkeys(found))
    if not all(text.endswith(("/32", "/128")) for text in found):
        raise spec.error("addresses", "single addresses; networks require resolution NONE")
    return tuple(dict.fromkeys(text.partition("/")[0] for text in found)), ()


def _allocated(status: Fields, hosts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The addresses that were allocated in the status, by host; those without host are of all."""
    found: dict[str, list[str]] = {host: [] for host in hosts}
    allocated = list(status.mappings("addresses"))
    if len(allocated) > MAX_ALLOCATED:
        raise status.error("addresses", f"at most {MAX_ALLOCATED}")
    for each in allocated:
        vip = each.address("value")
        host = each.string("host").lower().rstrip(".")
        for name in (host,) if host else hosts:
            if vip and name in found and vip not in found[name]:
                found[name].append(vip)
    return {host: tuple(vips) for host, vips in found.items() if vips}


def _network(text: str, spec: Fields) -> str:
    try:
        if "/" not in text:
            text = canonical(text)
        network = ip_network(text, strict=False)
    except (AddressError, ValueError) as error:
        raise spec.error("addresses", "IP addresses or networks such as 10.0.0.0/8") from error
    if network.is_multicast or network.is_unspecified or network.is_loopback:
        raise spec.error("addresses", "addresses that are reachable from other nodes")
    return str(network)


def _ports(spec: Fields) -> tuple[tuple[ServicePort, ...], dict[str, int]]:
    """The ports, and the target ports by port name."""
    ports: list[ServicePort] = []
    targets: dict[str, int] = {}
    numbers: set[int] = set()
    for each in spec.mappings("ports"):
        each.allow_only("number", "protocol", "name", "targetPort")
        number, name = each.port("number"), each.string("name")
        if number is None or number in numbers:
            raise each.error("number", "a unique port number")
        if not name or name in targets:
            raise each.error("name", "a unique name")
        protocol = each.string("protocol").upper() or "TCP"
        if protocol not in _PROTOCOLS:
            raise each.error("protocol", ", ".join(sorted(_PROTOCOLS)))
        numbers.add(number)
        targets[name] = each.port("targetPort") or number
        transport = "UDP" if protocol == "UDP" else "TCP"
        ports.append(ServicePort(number, name, transport, protocol.lower()))
    if not 0 < len(ports) <= MAX_PORTS:
        raise spec.error("ports", f"one to {MAX_PORTS} ports")
    return tuple(ports), targets


def _endpoints(spec: Fields, resolution: str, targets: dict[str, int]) -> tuple[EntryEndpoint, ...]:
    found = list(spec.mappings("endpoints"))
    if len(found) > MAX_ENDPOINTS:
        raise spec.error("endpoints", f"at most {MAX_ENDPOINTS}")
    return tuple(_endpoint(each, resolution, targets) for each in found)


def _endpoint(fields: Fields, resolution: str, targets: dict[str, int]) -> EntryEndpoint:
    fields.allow_only(
        "address", "ports", "labels", "network", "locality", "weight", "serviceAccount"
    )
    address = fields.string("address")
    try:
        address = canonical(address)
    except AddressError:
        address = address.lower().rstrip(".")
        if resolution != "DNS" or not _HOST.fullmatch(address) or address.startswith("*"):
            want = "an IP address" + (" or a name" if resolution == "DNS" else "")
            raise fields.error("address", want) from None
    own = fields.ports_by_name("ports")
    if unknown := own.keys() - targets.keys():
        raise fields.error(
            "ports", f"names of the entry's ports; unknown: {', '.join(sorted(unknown))}"
        )
    # endpoints without ports of their own share one mapping
    return EntryEndpoint(address, {**targets, **own} if own else targets)


def _selector(spec: Fields) -> dict[str, str] | None:
    if not spec.has("workloadSelector"):
        return None
    selector = spec.mapping("workloadSelector")
    selector.allow_only("labels")
    labels = selector.labels("labels")
    if not labels:
        raise selector.error("labels", "at least one label")
    return labels


def _check_destinations(
    spec: Fields, resolution: str, hosts: tuple[str, ...], has_endpoints: bool, selects: bool
) -> None:
    """Check that exactly one source of destinations is configured."""
    if has_endpoints and selects:
        raise spec.error("workloadSelector", "no workloadSelector with endpoints")
    if resolution in ("NONE", "DYNAMIC_DNS") and (has_endpoints or selects):
        raise spec.error("resolution", "STATIC or DNS, because there are endpoints or a selector")
    if resolution == "STATIC" and not (has_endpoints or selects):
        raise spec.error("endpoints", "some, or a workloadSelector, because resolution is STATIC")
    if resolution == "DNS" and selects:
        raise spec.error("workloadSelector", "no workloadSelector with resolution DNS")
    if resolution == "DNS" and not has_endpoints and any(host.startswith("*") for host in hosts):
        raise spec.error(
            "hosts", "no wildcards (they cannot be resolved), endpoints, or resolution DYNAMIC_DNS"
        )


def _check_dynamic(spec: Fields, ports: tuple[ServicePort, ...]) -> None:
    if spec.string("location") == "MESH_INTERNAL":
        raise spec.error("location", "MESH_EXTERNAL, because resolution is DYNAMIC_DNS")
    if any(port.app_protocol not in _NAMED_PROTOCOLS for port in ports):
        raise spec.error(
            "ports", "protocols HTTP, HTTP2, GRPC, HTTPS or TLS, because resolution is DYNAMIC_DNS"
        )


def _export_to(spec: Fields, namespace: str) -> tuple[str, ...]:
    export_to = spec.strings("exportTo")
    if len(export_to) > MAX_EXPORTS:
        raise spec.error("exportTo", f"at most {MAX_EXPORTS} namespaces")
    for each in export_to:
        if each not in ("*", ".", NO_NAMESPACE) and not _NAMESPACE.fullmatch(each):
            raise spec.error("exportTo", "namespaces, `.` (own), `*` (all) or `~` (none)")
    if not export_to or "*" in export_to:
        return ()
    return tuple(dict.fromkeys(namespace if each == "." else each for each in export_to))


def _warning(spec: Fields, name: str, resolution: str, networks: tuple[str, ...]) -> str:
    """What is not honoured; empty if everything is."""
    found = []
    if resolution == "NONE" and not networks:
        found.append("resolution NONE without addresses has no effect: no connection matches")
    if resolution == "NONE" and any(each.has("targetPort") for each in spec.mappings("ports")):
        found.append("ports.targetPort has no effect: resolution NONE keeps the destination's port")
    if spec.strings("subjectAltNames"):
        found.append(
            "subjectAltNames are not verified: set them in the tls settings of a DestinationRule"
        )
    ignored = [
        field for field in _IGNORED if any(each.has(field) for each in spec.mappings("endpoints"))
    ]
    if ignored:
        found.append(f"endpoints: {', '.join(ignored)} have no effect")
    return f"{name}: {'; '.join(found)}" if found else ""


def is_name(address: str) -> bool:
    """Whether an endpoint's address is a DNS name."""
    try:
        canonical(address)
    except AddressError:
        return True
    return False
