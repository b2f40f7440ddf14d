# SPDX-License-Identifier: Apache-2.0
"""The nouns of the mesh: workloads, services and their endpoints.

Plain frozen values: no I/O, no clock, no Kubernetes client.
They travel unchanged between the agent and the proxy (`ztunnel.ipc`). `gc=False`: they hold texts
and each other, so no cycle can begin here, and the collector need not walk thousands of them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

DEFAULT_TRUST_DOMAIN = "cluster.local"  # Istio's default, meshConfig.trustDomain
DEFAULT_ROOT_NAMESPACE = "istio-system"  # Istio's default, meshConfig.rootNamespace
DEFAULT_CLUSTER = "Kubernetes"  # Istio's default cluster id
DEFAULT_CLUSTER_DOMAIN = "cluster.local"  # Kubernetes' default, kubelet's clusterDomain


class TunnelProtocol(StrEnum):
    """How a workload is reached: `NONE` is plain TCP, `HBONE` is mTLS to port 15008."""

    NONE = "NONE"
    HBONE = "HBONE"


class SocketAddress(msgspec.Struct, frozen=True, order=True, gc=False):
    """An IP address in canonical text (never v4-mapped) and a port."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


class Workload(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One pod as every node knows it.

    `uid` is Istio's form `<cluster>//Pod/<namespace>/<name>`; it names the pod across the mesh.
    `pod_uid` is Kubernetes' metadata.uid: it changes when a pod of the same name is re-created.
    `addresses` are canonical IP texts, primary first. `enrolled`: its node is to capture it;
    `protocol`: how others reach it now, which follows once it is captured.
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
    capture_refused: str = ""  # why an ambient-labelled pod is not captured; empty when it is

    @property
    def identity(self) -> str:
        """The SPIFFE id this workload proves, `spiffe://<td>/ns/<ns>/sa/<sa>`."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    """A service's port; endpoints resolve its `name` to their own target port."""

    port: int
    name: str = ""
    protocol: str = "TCP"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One backend address of a service.

    `ports` maps a ServicePort name to the backend's port. `workload` is the Workload.uid
    behind the address, empty when the address belongs to no pod. `hostname` is the pod's own name
    below the service's, if it has one (a StatefulSet's do).
    """

    address: str
    ports: dict[str, int]
    ready: bool = True
    workload: str = ""
    hostname: str = ""


class Service(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A Service with its endpoints, or one host of a ServiceEntry (`entry`), whose name is the
    host; one value so that an update is one message.

    `export_to`: namespaces whose pods know of it, empty for all. `networks`: what an entry without
    places of its own stands for. `own_dns`: without virtual addresses its name is for the pod's own
    resolver to answer.
    """

    namespace: str
    name: str
    vips: tuple[str, ...] = ()  # ClusterIPs, canonical; empty for a headless service
    ports: tuple[ServicePort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    hostname: str = ""  # <name>.<namespace>.svc.<cluster domain>, or a host outside: `*.host` too
    entry: bool = False
    export_to: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    own_dns: bool = False

    @property
    def key(self) -> str:
        """`namespace/name`: how updates and removals name a service."""
        return f"{self.namespace}/{self.name}"

    def is_seen_by(self, namespace: str) -> bool:
        """Whether pods of a namespace know of it; the empty one stands for all."""
        return not self.export_to or not namespace or namespace in self.export_to
