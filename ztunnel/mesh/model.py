# SPDX-License-Identifier: Apache-2.0
"""The mesh model: workloads, services and their endpoints.

Plain frozen values: no I/O, no clock, no Kubernetes client. The agent sends them unchanged to the
proxy (`ztunnel.ipc`). `gc=False`: the values cannot form reference cycles, so the garbage
collector does not have to traverse thousands of them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

DEFAULT_TRUST_DOMAIN = "cluster.local"  # Istio's default, meshConfig.trustDomain
DEFAULT_ROOT_NAMESPACE = "istio-system"  # Istio's default, meshConfig.rootNamespace
DEFAULT_CLUSTER = "Kubernetes"  # Istio's default cluster ID
DEFAULT_CLUSTER_DOMAIN = "cluster.local"  # Kubernetes' default, kubelet's clusterDomain


class TunnelProtocol(StrEnum):
    """How peers reach a workload: `NONE` is plain TCP, `HBONE` is mTLS to port 15008."""

    NONE = "NONE"
    HBONE = "HBONE"


class SocketAddress(msgspec.Struct, frozen=True, order=True, gc=False):
    """An IP address in canonical form (never v4-mapped) and a port."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


class GatewayPort(msgspec.Struct, frozen=True, order=True, gc=False):
    """A port of an ingress gateway's listener. `protocol`: TCP or UDP."""

    port: int
    protocol: str = "TCP"


class Workload(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One pod as every node knows it.

    `uid` has Istio's form `<cluster>//Pod/<namespace>/<name>` and identifies the pod in the mesh.
    `pod_uid` is metadata.uid: it changes when a pod of the same name is re-created. `addresses`
    are canonical, the primary one first. `enrolled`: the pod's node is to capture it. `protocol`:
    how peers reach it now; it becomes HBONE once the pod is captured.

    `waypoint`: `namespace/name` of the Gateway that connections to the pod's own addresses pass;
    empty for none. `waypoint_error`: why that waypoint cannot be used, so that such connections
    are refused. `gateway`: `namespace/name` of the Gateway that the pod runs. `gateway_ports`: the
    ports of that ingress gateway's listeners. They are public: the mesh does not capture what
    arrives there, and the pod's Envoy enforces policy.
    """

    uid: str
    pod_uid: str
    name: str
    namespace: str
    service_account: str
    node: str
    addresses: tuple[str, ...]
    protocol: TunnelProtocol = TunnelProtocol.NONE
    enrolled: bool = False
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    cluster: str = DEFAULT_CLUSTER
    host_network: bool = False
    ready: bool = True
    capacity: int = 1
    labels: dict[str, str] = {}
    owner_kind: str = "pod"  # deployment | cronjob | job | pod, for baggage and metrics
    owner_name: str = ""
    capture_refused: str = ""  # why a pod that opts in is not captured; empty otherwise
    waypoint: str = ""
    waypoint_error: str = ""
    gateway: str = ""
    gateway_ports: tuple[GatewayPort, ...] = ()

    @property
    def identity(self) -> str:
        """The SPIFFE ID of the workload, `spiffe://<td>/ns/<ns>/sa/<sa>`."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    def needs_waypoint_of(self, destination: Workload) -> bool:
        """Return whether connections to the destination's own addresses pass its waypoint.

        Not if this pod runs that waypoint, or an ingress gateway: it has routed the request.
        """
        waypoint = destination.waypoint
        return bool(waypoint) and waypoint != self.gateway and not self.gateway_ports

    def is_gateway_port(self, port: int, *, udp: bool = False) -> bool:
        """Return whether it is a port of a listener of the ingress gateway that the pod runs."""
        protocol = "UDP" if udp else "TCP"
        return any(each.port == port and each.protocol == protocol for each in self.gateway_ports)


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    """A port of a service. Endpoints map its `name` to their own target port.

    `app_protocol`: the appProtocol in lower case, or the protocol that the prefix of the name
    declares (`http-web`: `http`); empty if neither does. Of a ServiceEntry: its protocol.
    `node_port`: the port at the nodes' addresses; 0 for none.
    """

    port: int
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str = ""
    node_port: int = 0


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One backend address of a service.

    `ports` maps a ServicePort name to the backend's port. `workload` is the Workload.uid of the
    address, empty if the address does not belong to a pod. `hostname` is the endpoint's name
    below the service name, as pods of a StatefulSet have.
    """

    address: str
    ports: dict[str, int]
    ready: bool = True
    workload: str = ""
    hostname: str = ""


class Service(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A Service with its endpoints, or one host of a ServiceEntry (`is_service_entry`).

    One value, so that an update is one message. The `name` of a ServiceEntry's host is the host.
    `export_to`: the namespaces that see the service, empty for all. `networks`: the CIDRs that an
    entry without endpoints covers. `entry`: the name of the ServiceEntry object. `upstream_dns`:
    without virtual addresses, the pod's own resolver answers for the name. `waypoint`:
    `namespace/name` of the Gateway, and of its Service, that connections to the service pass; empty
    for none. `waypoint_error`: why that waypoint cannot be used, so that connections are refused.
    `dynamic_ports`: target port by port name, of a host whose names the waypoint resolves (the
    resolution DYNAMIC_DNS); empty for all others.
    `ingress_use_waypoint`: ingress gateways connect to the virtual address, and so through the
    waypoint; otherwise they connect to the endpoints. Never set without a waypoint.
    `load_balancer_ips`: addresses of the load balancer at which nodes serve the service, too.
    `external_ips`: further ones that its author has chosen, for clients of its namespace.
    """

    namespace: str
    name: str
    vips: tuple[str, ...] = ()  # ClusterIPs, canonical; empty for a headless service
    ports: tuple[ServicePort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    hostname: str = ""  # <name>.<namespace>.svc.<cluster domain>, or an external host or `*.host`
    is_service_entry: bool = False
    export_to: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    upstream_dns: bool = False
    waypoint: str = ""
    waypoint_error: str = ""
    entry: str = ""
    ingress_use_waypoint: bool = False
    load_balancer_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    dynamic_ports: dict[str, int] = {}

    @property
    def key(self) -> str:
        """`namespace/name`, the key in updates and removals."""
        return f"{self.namespace}/{self.name}"

    @property
    def outside_ips(self) -> tuple[str, ...]:
        """The addresses of load balancers, and external IPs."""
        return self.load_balancer_ips + self.external_ips

    def is_visible_to(self, namespace: str) -> bool:
        """Return whether pods of a namespace see the service; an empty namespace sees all."""
        return not self.export_to or not namespace or namespace in self.export_to
