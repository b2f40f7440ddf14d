# SPDX-License-Identifier: Apache-2.0
"""A ServiceEntry object, checked and read: pure.

    resolution NONE     connections go where they go; the entry names what may be reached
    resolution STATIC   to addresses: of endpoints, or of the namespace's pods that a selector takes
    resolution DNS      to what names resolve to, on the node: of endpoints, or the hosts themselves

What can't be understood is refused as a whole (TranslateError says why). Meanings: Istio's
networking.istio.io/v1 reference; what of it a node does not do is a `complaint`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network

from ztunnel.kube.objects.fields import Fields, Object, key_of
from ztunnel.mesh.address import AddressError, canonical
from ztunnel.mesh.model import ServicePort

MOST_HOSTS = 256  # as in Istio's CRD, here and below
MOST_ADDRESSES = 256
MOST_PORTS = 256
NOBODY = "~"  # exportTo: to no namespace; no namespace can be called so

_HOST = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
)
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PROTOCOLS = frozenset(
    {"TCP", "TLS", "HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "MONGO", "MYSQL", "REDIS", "UDP"}
)
_RESOLUTIONS = {"NONE": "NONE", "STATIC": "STATIC", "DNS": "DNS", "DNS_ROUND_ROBIN": "DNS"}
_LOCATIONS = frozenset({"", "MESH_EXTERNAL", "MESH_INTERNAL"})


@dataclass(frozen=True, slots=True)
class EntryEndpoint:
    """One place of an entry: `address` is a canonical IP or a name; `ports` by port name."""

    address: str
    ports: dict[str, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """What matters of a ServiceEntry. `export_to` is empty for all namespaces; `selector` is None
    without a workloadSelector; `targets` are the ports of endpoints that say none of their own."""

    namespace: str
    name: str
    hosts: tuple[str, ...]
    vips: tuple[str, ...]
    networks: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    targets: dict[str, int]
    resolution: str
    endpoints: tuple[EntryEndpoint, ...]
    selector: dict[str, str] | None
    export_to: tuple[str, ...]
    complaint: str


def read_entry(obj: Object, cluster_domain: str) -> Entry:
    """Check and read a ServiceEntry. Raises TranslateError."""
    key = key_of(obj)
    whole = Fields(obj, f"{key}: ")
    spec = whole.mapping("spec")
    spec.only(
        *("hosts", "addresses", "ports", "location", "resolution", "endpoints"),
        *("workloadSelector", "exportTo", "subjectAltNames"),
    )
    resolution = _RESOLUTIONS.get(spec.text("resolution") or "NONE")
    if resolution is None:
        raise spec.error("resolution", "NONE, STATIC, DNS or DNS_ROUND_ROBIN")
    if spec.text("location") not in _LOCATIONS:
        raise spec.error("location", "MESH_EXTERNAL or MESH_INTERNAL")
    hosts = _hosts(spec, cluster_domain)
    vips, networks = _addresses(spec, whole.mapping("status"), resolution)
    ports, targets = _ports(spec)
    endpoints = tuple(_endpoint(each, resolution, targets) for each in spec.mappings("endpoints"))
    selector = _selector(spec)
    _check_places(spec, resolution, hosts, bool(endpoints), selector is not None)
    return Entry(
        namespace=key.namespace,
        name=key.name,
        hosts=hosts,
        vips=vips,
        networks=networks,
        ports=ports,
        targets=targets,
        resolution=resolution,
        endpoints=endpoints,
        selector=selector,
        export_to=_export_to(spec, key.namespace),
        complaint=_complaint(spec, str(key), resolution, networks),
    )


def _hosts(spec: Fields, cluster_domain: str) -> tuple[str, ...]:
    hosts = tuple(dict.fromkeys(host.lower().rstrip(".") for host in spec.texts("hosts")))
    if not 0 < len(hosts) <= MOST_HOSTS:
        raise spec.error("hosts", f"one to {MOST_HOSTS} names")
    for host in hosts:
        if len(host) > 253 or not _HOST.fullmatch(host):
            raise spec.error("hosts", "full names as api.example.com, or *.example.com")
        if host.endswith(f".{cluster_domain}"):
            raise spec.error("hosts", f"no names below {cluster_domain}, which are services'")
    return hosts


def _addresses(
    spec: Fields, status: Fields, resolution: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Virtual addresses, and networks of an entry that only names what there is.

    Without any the ones that an istiod put into the status count.
    """
    written = spec.texts("addresses")
    if len(written) > MOST_ADDRESSES:
        raise spec.error("addresses", f"at most {MOST_ADDRESSES}")
    found = [_network(text, spec) for text in written]
    if resolution == "NONE":
        return (), tuple(dict.fromkeys(found))
    if not all(text.endswith(("/32", "/128")) for text in found):
        raise spec.error("addresses", "single addresses; networks go with resolution NONE")
    vips = [text.partition("/")[0] for text in found]
    if not vips:
        vips = [each.address("value") for each in status.mappings("addresses")]
    return tuple(dict.fromkeys(vip for vip in vips if vip)), ()


def _network(text: str, spec: Fields) -> str:
    try:
        if "/" not in text:
            text = canonical(text)
        network = ip_network(text, strict=False)
    except (AddressError, ValueError) as error:
        raise spec.error("addresses", "IP addresses or networks as 10.0.0.0/8") from error
    if network.is_multicast or network.is_unspecified or network.is_loopback:
        raise spec.error("addresses", "addresses that can be connected to across nodes")
    return str(network)


def _ports(spec: Fields) -> tuple[tuple[ServicePort, ...], dict[str, int]]:
    """The ports, and by their names where they lead to."""
    ports: list[ServicePort] = []
    targets: dict[str, int] = {}
    numbers: set[int] = set()
    for each in spec.mappings("ports"):
        each.only("number", "protocol", "name", "targetPort")
        number, name = each.port("number"), each.text("name")
        if number is None or number in numbers:
            raise each.error("number", "a port number, each once")
        if not name or name in targets:
            raise each.error("name", "a name, each once")
        protocol = each.text("protocol").upper() or "TCP"
        if protocol not in _PROTOCOLS:
            raise each.error("protocol", ", ".join(sorted(_PROTOCOLS)))
        numbers.add(number)
        targets[name] = each.port("targetPort") or number
        ports.append(ServicePort(number, name, "UDP" if protocol == "UDP" else "TCP"))
    if not 0 < len(ports) <= MOST_PORTS:
        raise spec.error("ports", f"one to {MOST_PORTS} ports")
    return tuple(ports), targets


def _endpoint(fields: Fields, resolution: str, targets: dict[str, int]) -> EntryEndpoint:
    fields.only("address", "ports", "labels", "network", "locality", "weight", "serviceAccount")
    address = fields.text("address")
    try:
        address = canonical(address)
    except AddressError:
        address = address.lower().rstrip(".")
        if resolution != "DNS" or not _HOST.fullmatch(address) or address.startswith("*"):
            want = "an IP address" + (" or a name" if resolution == "DNS" else "")
            raise fields.error("address", want) from None
    own = fields.port_numbers("ports")
    if unknown := own.keys() - targets.keys():
        raise fields.error("ports", f"names of the entry's ports, not {sorted(unknown)}")
    return EntryEndpoint(address, {**targets, **own})


def _selector(spec: Fields) -> dict[str, str] | None:
    if not spec.has("workloadSelector"):
        return None
    selector = spec.mapping("workloadSelector")
    selector.only("labels")
    labels = selector.labels("labels")
    if not labels:
        raise selector.error("labels", "at least one label")
    return labels


def _check_places(
    spec: Fields, resolution: str, hosts: tuple[str, ...], has_endpoints: bool, selects: bool
) -> None:
    """That there is one way to tell where connections go."""
    if has_endpoints and selects:
        raise spec.error("workloadSelector", "none beside endpoints")
    if resolution == "NONE" and (has_endpoints or selects):
        raise spec.error("resolution", "STATIC or DNS, as there are endpoints or a selector")
    if resolution == "STATIC" and not (has_endpoints or selects):
        raise spec.error("endpoints", "some, or a workloadSelector, as resolution is STATIC")
    if resolution == "DNS" and selects:
        raise spec.error("workloadSelector", "none with resolution DNS")
    if resolution == "DNS" and not has_endpoints and any(host.startswith("*") for host in hosts):
        raise spec.error("hosts", "no wildcard, which can't be resolved, or endpoints")


def _export_to(spec: Fields, namespace: str) -> tuple[str, ...]:
    written = spec.texts("exportTo")
    for each in written:
        if each not in ("*", ".", NOBODY) and not _NAMESPACE.fullmatch(each):
            raise spec.error("exportTo", "namespaces, `.` for its own, `*` for all, `~` for none")
    if not written or "*" in written:
        return ()
    return tuple(dict.fromkeys(namespace if each == "." else each for each in written))


def _complaint(spec: Fields, name: str, resolution: str, networks: tuple[str, ...]) -> str:
    if resolution == "NONE" and not networks:
        return f"{name}: without addresses nothing tells its connections from others"
    if spec.texts("subjectAltNames"):
        return f"{name}: subjectAltNames are not checked: a node starts no TLS of its own outside"
    return ""


def is_name(address: str) -> bool:
    """Whether an endpoint's address is to be resolved."""
    try:
        canonical(address)
    except AddressError:
        return True
    return False
