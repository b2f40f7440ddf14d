# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects in the mesh's nouns: a pure translation.

Two steps, because what a pod is in the mesh also depends on its namespace, and a service on its
EndpointSlices: `read_*` checks one object and keeps what matters of it (TranslateError when it
can't be understood); `workload` and `service` join what was read and never fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ztunnel.kube.objects.fields import Fields, Object, key_of
from ztunnel.mesh.enrollment import (
    REDIRECTION_ANNOTATION,
    REDIRECTION_ENABLED,
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

_FINISHED = frozenset({"Succeeded", "Failed"})
_CRON_JOB = re.compile(r"(.+)-[0-9]{8,10}")  # a CronJob's Job: the minute it was due; as in Istio


@dataclass(frozen=True, slots=True)
class Cluster:
    """What every workload and service of a cluster has in common.

    `marks`: agents mark the pods they captured, and only those are spoken HBONE to. Without
    (a directory of manifests) an enrolled pod counts as captured.
    """

    trust_domain: str
    cluster: str
    cluster_domain: str = DEFAULT_CLUSTER_DOMAIN
    marks: bool = False

    def workload_uid(self, namespace: str, name: str) -> str:
        """Istio's name of a pod across the mesh."""
        return f"{self.cluster}//Pod/{namespace}/{name}"


@dataclass(frozen=True, slots=True)
class Pod:
    """What matters of a Pod. `complaint` is about what could be read only by a default."""

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
    complaint: str

    @property
    def is_workload(self) -> bool:
        """Finished pods keep their addresses in the API, but others may have them by now."""
        return bool(self.addresses) and self.phase not in _FINISHED


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What matters of a Service object."""

    namespace: str
    name: str
    vips: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    external: bool
    selector: dict[str, str]  # labels of the pods behind it; empty when others name its endpoints


@dataclass(frozen=True, slots=True)
class SliceEntry:
    """One endpoint of a slice; `pod` is (namespace, name) of what is behind it."""

    addresses: tuple[str, ...]
    ready: bool
    pod: tuple[str, str] | None
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """What matters of an EndpointSlice; `ports` by the service's port name."""

    namespace: str
    service: str
    ports: dict[str, int]
    entries: tuple[SliceEntry, ...]


def read_pod(obj: Object) -> Pod:
    """Check and read a Pod."""
    key, fields = key_of(obj), _fields(obj)
    metadata, spec, status = (fields.mapping(name) for name in ("metadata", "spec", "status"))
    labels, annotations = metadata.labels("labels"), metadata.labels("annotations")
    capacity, complaint = _capacity(annotations)
    pod = Pod(
        namespace=key.namespace,
        name=key.name,
        uid=metadata.text("uid"),
        labels=labels,
        annotations=annotations,
        node=spec.text("nodeName"),
        service_account=spec.text("serviceAccountName") or spec.text("serviceAccount") or "default",
        host_network=spec.flag("hostNetwork"),
        phase=status.text("phase"),
        ready=_is_ready(status),
        addresses=_pod_addresses(status),
        owner=_owner(metadata, labels, key.name),
        capacity=capacity,
        complaint=f"{key}: {complaint}" if complaint else "",
    )
    if pod.is_workload and not pod.uid:
        raise metadata.error("uid", "the pod's uid, as it has an address")
    return pod


def workload(pod: Pod, namespace_labels: Mapping[str, str], cluster: Cluster) -> Workload | None:
    """The pod in the mesh; None when it is finished or has no address yet."""
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
    captured = _is_marked(pod) if cluster.marks else enrolled
    speaks_hbone = captured or (has_native_tunnel(pod.labels) and not pod.host_network)
    return Workload(
        uid=cluster.workload_uid(pod.namespace, pod.name),
        pod_uid=pod.uid,
        name=pod.name,
        namespace=pod.namespace,
        service_account=pod.service_account,
        node=pod.node,
        addresses=pod.addresses,
        protocol=TunnelProtocol.HBONE if speaks_hbone else TunnelProtocol.NONE,
        enrolled=enrolled,
        trust_domain=cluster.trust_domain,
        cluster=cluster.cluster,
        host_network=pod.host_network,
        ready=pod.ready,
        capacity=pod.capacity,
        labels=pod.labels,
        owner_kind=pod.owner[0],
        owner_name=pod.owner[1],
        capture_refused=refused,
    )


def _is_marked(pod: Pod) -> bool:
    """A mark on a pod of the host's network is nobody's: no agent makes one."""
    return (
        pod.annotations.get(REDIRECTION_ANNOTATION) == REDIRECTION_ENABLED and not pod.host_network
    )


def read_service(obj: Object) -> ServiceSpec:
    """Check and read a Service."""
    key, spec = key_of(obj), _fields(obj).mapping("spec")
    ips = spec.texts("clusterIPs") or [spec.text("clusterIP")]
    return ServiceSpec(
        namespace=key.namespace,
        name=key.name,
        vips=tuple(spec.ip(ip, "clusterIPs") for ip in ips if ip not in ("", "None")),
        ports=tuple(_service_port(port) for port in spec.mappings("ports")),
        external=spec.text("type") == "ExternalName",
        selector=spec.labels("selector"),
    )


def read_slice(obj: Object) -> Slice | None:
    """Check and read an EndpointSlice; None when it is no service's, or lists names, not IPs."""
    key, fields = key_of(obj), _fields(obj)
    name = fields.mapping("metadata").labels("labels").get(SERVICE_LABEL, "")
    if not name or fields.text("addressType") == "FQDN":
        return None
    ports = {port.text("name"): port.port("port") for port in fields.mappings("ports")}
    return Slice(
        namespace=key.namespace,
        service=name,
        ports={port_name: number for port_name, number in ports.items() if number is not None},
        entries=tuple(_entry(item, key.namespace) for item in fields.mappings("endpoints")),
    )


def service(spec: ServiceSpec, slices: Iterable[Slice], cluster: Cluster) -> Service | None:
    """A service with the endpoints of its slices; None when it is only another name.

    An endpoint may stand in two slices at once while it moves between them (Kubernetes' words);
    it is one endpoint then, ready when either says so.
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
    )


def read_namespace_labels(obj: Object) -> dict[str, str]:
    """The labels of a Namespace."""
    return _fields(obj).mapping("metadata").labels("labels")


def read_node_addresses(obj: Object) -> tuple[str, ...]:
    """A Node's own addresses, canonical: the sources of the kubelet's probes."""
    entries = _fields(obj).mapping("status").mappings("addresses")
    return tuple(
        entry.address("address") for entry in entries if entry.text("type") == "InternalIP"
    )


def _fields(obj: Object) -> Fields:
    return Fields(obj, f"{key_of(obj)}: ")


def _capacity(annotations: Mapping[str, str]) -> tuple[int, str]:
    """The capacity, and what is wrong with it. A wrong one counts as 1: were the pod dropped for
    it, others would take it for a plain address outside the mesh."""
    text = annotations.get(CAPACITY_ANNOTATION, "1").strip()
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0:
        return int(text), ""
    return 1, f"annotation {CAPACITY_ANNOTATION} is {text!r:.40}, want a positive number; 1 is used"


def _is_ready(status: Fields) -> bool:
    return any(
        condition.text("type") == "Ready" and condition.text("status") == "True"
        for condition in status.mappings("conditions")
    )


def _pod_addresses(status: Fields) -> tuple[str, ...]:
    found = [entry.address("ip") for entry in status.mappings("podIPs")]
    found = found or [status.address("podIP")]
    return tuple(dict.fromkeys(ip for ip in found if ip))


def _owner(metadata: Fields, labels: Mapping[str, str], pod_name: str) -> tuple[str, str]:
    """Who made the pod, as people know it: the Deployment above the ReplicaSet, and so on."""
    for owner in metadata.mappings("ownerReferences"):
        kind, name = owner.text("kind"), owner.text("name")
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
    return ServicePort(number, fields.text("name"), fields.text("protocol") or "TCP")


def _entry(fields: Fields, namespace: str) -> SliceEntry:
    target = fields.mapping("targetRef")
    is_pod = target.text("kind") == "Pod" and target.text("name")
    return SliceEntry(
        addresses=tuple(fields.addresses("addresses")),
        ready=fields.mapping("conditions").flag("ready", default=True),  # unset means ready
        pod=(target.text("namespace") or namespace, target.text("name")) if is_pod else None,
        hostname=fields.text("hostname").lower(),
    )
