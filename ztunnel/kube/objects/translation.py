# SPDX-License-Identifier: Apache-2.0
"""Translates Kubernetes objects into workloads and services. Pure.

There are two steps, because a workload also depends on its namespace, and a service on its
EndpointSlices: `read_*` validates and parses one object (TranslateError if it is invalid);
`workload` and `service` combine parsed objects and cannot fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ztunnel.kube.objects.fields import Fields, Object, key_of
from ztunnel.kube.objects.pod_privileges import bypassing_privileges
from ztunnel.kube.objects.port_protocol import protocol_of_name
from ztunnel.kube.objects.waypoints import REQUIRE_WAYPOINT, gateway_of, requires_waypoint
from ztunnel.mesh import canonical_service
from ztunnel.mesh.address import AddressError, canonical
from ztunnel.mesh.enrollment import (
    REDIRECTION_ANNOTATION,
    REDIRECTION_ENABLED,
    TUNNEL_LABEL,
    CaptureRejected,
    Enrolled,
    decide,
    has_native_tunnel,
)
from ztunnel.mesh.model import (
    DEFAULT_CLUSTER_DOMAIN,
    Endpoint,
    Service,
    ServicePort,
    TunnelProtocol,
    Workload,
)

CAPACITY_ANNOTATION = "ambient.ztunnel.dev/capacity"
SERVICE_LABEL = "kubernetes.io/service-name"  # of an EndpointSlice
HASH_LABEL = "pod-template-hash"
MAX_LABELS_BYTES = 32 * 1024  # of a pod; with more, it is denied instead of selected by labels

_TELEMETRY_LABELS = (
    *canonical_service.LABELS,
    *("topology.kubernetes.io/region", "topology.kubernetes.io/zone", TUNNEL_LABEL),
)
_FINISHED = frozenset({"Succeeded", "Failed"})
_CRON_JOB = re.compile(r"(.+)-[0-9]{8,10}")  # CronJobs add the scheduled minute; as in Istio


@dataclass(frozen=True, slots=True)
class Cluster:
    """Properties that all workloads and services of a cluster share.

    `annotated_only`: agents annotate the pods that they captured; peers use HBONE for those only.
    Otherwise (a directory of manifests) an enrolled pod counts as captured.
    """

    trust_domain: str
    cluster: str
    cluster_domain: str = DEFAULT_CLUSTER_DOMAIN
    annotated_only: bool = False

    def workload_uid(self, namespace: str, name: str) -> str:
        """Istio's mesh-wide identifier of a pod."""
        return f"{self.cluster}//Pod/{namespace}/{name}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A parsed Pod. `warning`: which invalid field was replaced by its default. `host_addresses`
    are those of its node. `denied`: why all connections to it are denied; usually empty.
    `privileges`: which ones let its containers bypass the capture."""

    namespace: str
    name: str
    uid: str
    labels: dict[str, str]
    annotations: dict[str, str]
    node: str
    service_account: str
    host_network: bool
    phase: str
    ready: bool
    addresses: tuple[str, ...]
    owner: tuple[str, str]
    capacity: int
    warning: str
    denied: str
    host_addresses: tuple[str, ...] = ()
    requires_waypoint: bool | None = None  # see `waypoints.requires_waypoint`
    privileges: str = ""

    @property
    def is_workload(self) -> bool:
        """A finished pod keeps its addresses in the API, but another pod may have them by now."""
        return bool(self.addresses) and self.phase not in _FINISHED


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A parsed Service."""

    namespace: str
    name: str
    vips: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    external: bool
    selector: dict[str, str]  # empty if its endpoints are managed by other means
    labels: dict[str, str]
    requires_waypoint: bool | None = None  # see `waypoints.requires_waypoint`
    load_balancer_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SliceEntry:
    """One endpoint of a slice; `pod` is the target pod's (namespace, name)."""

    addresses: tuple[str, ...]
    ready: bool
    pod: tuple[str, str] | None
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """A parsed EndpointSlice; `ports` by the service's port name."""

    namespace: str
    service: str
    ports: dict[str, int]
    entries: tuple[SliceEntry, ...]


def read_pod(obj: Object) -> Pod:
    """Validate and parse a Pod. Raises TranslateError."""
    key, fields = key_of(obj), _fields(obj)
    metadata, spec, status = (fields.mapping(name) for name in ("metadata", "spec", "status"))
    labels, annotations = metadata.labels("labels"), metadata.labels("annotations")
    capacity, warning = _capacity(annotations)
    denied = _labels_error(labels)
    warning = denied or warning
    account = spec.string("serviceAccountName") or spec.string("serviceAccount")
    pod = Pod(
        namespace=key.namespace,
        name=key.name,
        uid=metadata.string("uid"),
        labels=labels,
        annotations=annotations,
        node=spec.string("nodeName"),
        service_account=account or "default",
        host_network=spec.boolean("hostNetwork"),
        phase=status.string("phase"),
        ready=_is_ready(status),
        addresses=_pod_addresses(status),
        owner=_owner(metadata, labels, key.name),
        capacity=capacity,
        warning=f"{key}: {warning}" if warning else "",
        denied=denied,
        host_addresses=_host_addresses(status),
        requires_waypoint=requires_waypoint(labels, annotations),
        privileges=bypassing_privileges(spec),
    )
    if pod.is_workload and not pod.uid:
        raise metadata.error("uid", "the pod's uid, because it has an address")
    return pod


def workload(
    pod: Pod,
    namespace_labels: Mapping[str, str],
    cluster: Cluster,
    waypoint: str = "",
    waypoint_error: str = "",
) -> Workload | None:
    """The pod as a workload; None if it is finished or has no address yet.

    `waypoint`, `waypoint_error`: as in Workload.
    """
    if not pod.is_workload:
        return None
    decision = decide(
        namespace_labels,
        pod.labels,
        pod.annotations,
        host_network=pod.host_network,
        phase=pod.phase,
        addresses=pod.addresses,
    )
    refused = (
        f"{decision.reason} — {decision.hint}" if isinstance(decision, CaptureRejected) else ""
    )
    enrolled = isinstance(decision, Enrolled)
    captured = _is_annotated(pod) if cluster.annotated_only else enrolled
    uses_hbone = captured or (has_native_tunnel(pod.labels) and not pod.host_network)
    return Workload(
        uid=cluster.workload_uid(pod.namespace, pod.name),
        pod_uid=pod.uid,
        name=pod.name,
        namespace=pod.namespace,
        service_account=pod.service_account,
        node=pod.node,
        addresses=pod.addresses,
        protocol=TunnelProtocol.HBONE if uses_hbone else TunnelProtocol.NONE,
        enrolled=enrolled,
        trust_domain=cluster.trust_domain,
        cluster=cluster.cluster,
        host_network=pod.host_network,
        ready=pod.ready,
        capacity=pod.capacity,
        labels=_telemetry_labels(pod.labels) if pod.denied else pod.labels,
        owner_kind=pod.owner[0],
        owner_name=pod.owner[1],
        capture_refused=refused,
        waypoint=waypoint,
        waypoint_error=waypoint_error,
        gateway=gateway_of(pod.labels, pod.namespace),
    )


def _is_annotated(pod: Pod) -> bool:
    """Ignores the annotation on host-network pods: agents never set it there."""
    return (
        pod.annotations.get(REDIRECTION_ANNOTATION) == REDIRECTION_ENABLED and not pod.host_network
    )


def read_service(obj: Object) -> ServiceSpec:
    """Validate and parse a Service. Raises TranslateError."""
    key, fields = key_of(obj), _fields(obj)
    spec, metadata = fields.mapping("spec"), fields.mapping("metadata")
    labels = metadata.labels("labels")
    ips = spec.strings("clusterIPs") or [spec.string("clusterIP")]
    vips = [ip for ip in ips if ip not in ("", "None")]  # "None": headless
    return ServiceSpec(
        namespace=key.namespace,
        name=key.name,
        vips=tuple(spec.canonical_address(ip, "clusterIPs") for ip in vips),
        ports=tuple(_service_port(port) for port in spec.mappings("ports")),
        external=spec.string("type") == "ExternalName",
        selector=spec.labels("selector"),
        labels=labels,
        requires_waypoint=requires_waypoint(labels, metadata.labels("annotations")),
        load_balancer_ips=tuple(_load_balancer_ips(spec, fields.mapping("status"))),
        external_ips=tuple(spec.addresses("externalIPs")),
    )


def _load_balancer_ips(spec: Fields, status: Fields) -> Iterator[str]:
    """The addresses at which nodes serve the service themselves.

    Not with the mode Proxy: connections must pass the load balancer. Not with source ranges:
    kube-proxy compares the addresses of clients with them, so connections must reach it.
    """
    if spec.string("type") != "LoadBalancer" or spec.strings("loadBalancerSourceRanges"):
        return
    for entry in status.mapping("loadBalancer").mappings("ingress"):
        if entry.string("ipMode") in ("", "VIP") and entry.string("ip"):
            yield entry.address("ip")


def read_slice(obj: Object) -> Slice | None:
    """Validate and parse an EndpointSlice; None without a service, or with names as addresses."""
    key, fields = key_of(obj), _fields(obj)
    name = fields.mapping("metadata").labels("labels").get(SERVICE_LABEL, "")
    if not name or fields.string("addressType") == "FQDN":
        return None
    ports = {port.string("name"): port.port("port") for port in fields.mappings("ports")}
    return Slice(
        namespace=key.namespace,
        service=name,
        ports={port_name: number for port_name, number in ports.items() if number is not None},
        entries=tuple(_slice_entry(item, key.namespace) for item in fields.mappings("endpoints")),
    )


def service(
    spec: ServiceSpec,
    slices: Iterable[Slice],
    cluster: Cluster,
    waypoint: str = "",
    waypoint_error: str = "",
) -> Service | None:
    """A service with the endpoints of its slices; None for an ExternalName service.

    `waypoint`, `waypoint_error`: as in Service. While an endpoint moves between slices it may be
    in both (Kubernetes documents this). It is one endpoint then, ready if it is ready in either.
    """
    if spec.external:
        return None
    endpoints: dict[str, Endpoint] = {}
    for piece in slices:
        for entry in piece.entries:
            uid = cluster.workload_uid(*entry.pod) if entry.pod else ""
            for address in entry.addresses:
                known = endpoints.get(address)
                endpoints[address] = Endpoint(
                    address=address,
                    ports={**known.ports, **piece.ports} if known else piece.ports,
                    ready=entry.ready or (known is not None and known.ready),
                    workload=uid or (known.workload if known else ""),
                    hostname=entry.hostname or (known.hostname if known else ""),
                )
    return Service(
        namespace=spec.namespace,
        name=spec.name,
        vips=spec.vips,
        ports=spec.ports,
        endpoints=tuple(endpoints.values()),
        hostname=f"{spec.name}.{spec.namespace}.svc.{cluster.cluster_domain}",
        waypoint=waypoint,
        waypoint_error=waypoint_error,
        load_balancer_ips=spec.load_balancer_ips,
        external_ips=spec.external_ips,
    )


def read_namespace_labels(obj: Object) -> dict[str, str]:
    """The labels of a Namespace; the annotation ztunnel.dev/require-waypoint counts as a label."""
    metadata = _fields(obj).mapping("metadata")
    labels, annotations = metadata.labels("labels"), metadata.labels("annotations")
    if REQUIRE_WAYPOINT in annotations:
        return labels | {REQUIRE_WAYPOINT: annotations[REQUIRE_WAYPOINT]}
    return labels


def read_node_addresses(obj: Object) -> tuple[str, ...]:
    """A Node's internal addresses in canonical form: the sources of kubelet probes."""
    entries = _fields(obj).mapping("status").mappings("addresses")
    return tuple(
        entry.address("address") for entry in entries if entry.string("type") == "InternalIP"
    )


def read_all_node_addresses(obj: Object) -> tuple[str, ...]:
    """A Node's internal and external addresses in canonical form."""
    entries = _fields(obj).mapping("status").mappings("addresses")
    found = [
        each.address("address")
        for each in entries
        if each.string("type") in ("InternalIP", "ExternalIP")
    ]
    return tuple(dict.fromkeys(ip for ip in found if ip))


def _fields(obj: Object) -> Fields:
    return Fields(obj, f"{key_of(obj)}: ")


def _labels_error(labels: Mapping[str, str]) -> str:
    size = sum(len(name) + len(value) for name, value in labels.items())
    if size <= MAX_LABELS_BYTES:
        return ""
    return (
        f"its labels have {size} characters, want at most {MAX_LABELS_BYTES}: "
        "all connections to the pod are denied"
    )


def _telemetry_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: labels[name][:63] for name in _TELEMETRY_LABELS if name in labels}


def _capacity(annotations: Mapping[str, str]) -> tuple[int, str]:
    """The capacity and a warning. An invalid value counts as 1: if the pod were rejected, peers
    would treat its address as outside the mesh."""
    text = annotations.get(CAPACITY_ANNOTATION, "1").strip()
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0:
        return int(text), ""
    return 1, f"annotation {CAPACITY_ANNOTATION} is {text!r:.40}, want a positive number; using 1"


def _is_ready(status: Fields) -> bool:
    return any(
        condition.string("type") == "Ready" and condition.string("status") == "True"
        for condition in status.mappings("conditions")
    )


def _pod_addresses(status: Fields) -> tuple[str, ...]:
    found = [entry.address("ip") for entry in status.mappings("podIPs")]
    found = found or [status.address("podIP")]
    return tuple(dict.fromkeys(ip for ip in found if ip))


def _host_addresses(status: Fields) -> tuple[str, ...]:
    """An invalid address is ignored: the pod is a workload nevertheless."""
    texts = [status.string("hostIP"), *(each.string("ip") for each in status.mappings("hostIPs"))]
    found: dict[str, None] = {}
    for text in filter(None, texts):
        try:
            found[canonical(text)] = None
        except AddressError:
            continue
    return tuple(found)


def _owner(metadata: Fields, labels: Mapping[str, str], pod_name: str) -> tuple[str, str]:
    """The kind and name of the owning resource, for example the ReplicaSet's Deployment."""
    for owner in metadata.mappings("ownerReferences"):
        kind, name = owner.string("kind"), owner.string("name")
        suffix = f"-{labels.get(HASH_LABEL, '')}"
        if kind == "ReplicaSet" and len(suffix) > 1 and name.endswith(suffix):
            return "deployment", name.removesuffix(suffix)
        if kind == "Job":
            cron = _CRON_JOB.fullmatch(name)
            return ("cronjob", cron[1]) if cron else ("job", name)
        if kind == "CronJob":
            return "cronjob", name
    return "pod", pod_name


def _service_port(fields: Fields) -> ServicePort:
    number = fields.port("port")
    if number is None:
        raise fields.error("port", "a port number")
    name = fields.string("name")
    declared = fields.string("appProtocol").lower() or protocol_of_name(name)
    protocol, node_port = fields.string("protocol") or "TCP", fields.port("nodePort") or 0
    return ServicePort(number, name, protocol, declared, node_port)


def _slice_entry(fields: Fields, namespace: str) -> SliceEntry:
    target = fields.mapping("targetRef")
    is_pod = target.string("kind") == "Pod" and target.string("name")
    return SliceEntry(
        addresses=tuple(fields.addresses("addresses")),
        ready=fields.mapping("conditions").boolean("ready", default=True),  # unset means ready
        pod=(target.string("namespace") or namespace, target.string("name")) if is_pod else None,
        hostname=fields.string("hostname").lower(),
    )
