# SPDX-License-Identifier: Apache-2.0
"""Names of GatewayClasses, of files in gateway pods, and inside Envoy's configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from ztunnel.kube.objects import l7_kinds

WAYPOINT_CLASSES: Final = ("istio-waypoint", "ztunnel-waypoint")
INGRESS_CLASSES: Final = l7_kinds.INGRESS_CLASSES


def is_waypoint_class(name: object) -> bool:
    """Return whether Gateways of a class are waypoints of the mesh."""
    return isinstance(name, str) and name in WAYPOINT_CLASSES


def is_ingress_class(name: object) -> bool:
    """Return whether Gateways of a class are ingress gateways of the mesh."""
    return isinstance(name, str) and name in INGRESS_CLASSES


class TypeUrl(StrEnum):
    """The resource types that Envoy subscribes to (envoyproxy.io, "xDS protocol")."""

    LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
    ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
    CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


class PeerState(StrEnum):
    """Filter-state keys with the client's metadata, from the TLVs of the PROXY header.

    Istio's number for the identity; the others are private to the loopback hop.
    """

    IDENTITY = "ztunnel.peer.identity"
    WORKLOAD = "ztunnel.peer.workload"
    NAMESPACE = "ztunnel.peer.namespace"
    APP = "ztunnel.peer.app"
    VERSION = "ztunnel.peer.version"
    TRACEPARENT = "ztunnel.peer.traceparent"

    @property
    def tlv(self) -> int:
        """The type number of the TLV."""
        return _TLVS[self]


_TLVS = {
    PeerState.IDENTITY: 0xD0,  # istio/ztunnel, src/proxy/inbound.rs
    PeerState.WORKLOAD: 0xE0,
    PeerState.NAMESPACE: 0xE1,
    PeerState.APP: 0xE2,
    PeerState.VERSION: 0xE3,
    PeerState.TRACEPARENT: 0xE4,
}

WAYPOINT_LISTENER = "waypoint"
WAYPOINT_PORT = 15088  # Envoy's listener on the pod's loopback
XDS_PORT = 15010  # delta ADS, on the pod's loopback
METRICS_PORT = 15020  # /metrics of a gateway pod
READINESS_PORT = 15021  # Envoy's /healthz/ready; Istio's number
SYSTEM_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"  # in the Envoy image; Debian's path
ADMIN_PORT = 15000  # Envoy's admin interface, on the pod's loopback; Istio's number

# Where a gateway's pod mounts the Secret with its certificates. The files are <id>.crt and <id>.key
# of a certificate, <id>.ca of a bundle of authorities.
GATEWAY_CERTIFICATES_DIRECTORY = "/etc/ztunnel/gateway-certificates"
# Certificates and bundles of one gateway. Envoy opens an inotify instance for each and aborts if it
# gets none. The kernel permits a user of a node 128 (fs.inotify.max_user_instances), and a rolling
# update runs two pods of a gateway on a node.
MAX_GATEWAY_CERTIFICATES = 60
MAX_GATEWAY_PORTS = 250  # of a Service: the limit of load balancers and kube-proxy (Kubernetes)
_ID_CHARS = 32  # hexadecimal digits of a SHA-256


class CertificateSource(NamedTuple):
    """The object that holds a certificate or authorities: `Secret` or `ConfigMap`."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


def certificate_id(kind: str, namespace: str, name: str) -> str:
    """The id of a certificate and its key, which names the files and Envoy's secret."""
    return _digest(str(CertificateSource(kind, namespace, name)))


def ca_id(refs: Iterable[CertificateSource]) -> str:
    """The id of the bundle of authorities of the references, in the order of the object."""
    return _digest(",".join(map(str, refs)))


def _digest(text: str) -> str:
    octets = text.encode(errors="backslashreplace")  # surrogates, in manifests of JSON
    return hashlib.sha256(octets).hexdigest()[:_ID_CHARS]


def cluster_name(service: str, port: int, subset: str = "") -> str:
    """The Envoy cluster of a service port; `service` is `namespace/name`."""
    return f"{service}|{port}|{subset}" if subset else f"{service}|{port}"


def route_name(destination: str, port: int) -> str:
    """The route configuration of a service port (`namespace/name`) or of a pod (its uid)."""
    return f"{destination}|{port}"
