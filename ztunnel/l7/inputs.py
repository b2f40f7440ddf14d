# SPDX-License-Identifier: Apache-2.0
"""What a configuration is compiled from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import (
    DEFAULT_CLUSTER,
    DEFAULT_CLUSTER_DOMAIN,
    DEFAULT_ROOT_NAMESPACE,
    DEFAULT_TRUST_DOMAIN,
    Service,
    ServicePort,
    Workload,
)
from ztunnel.mesh.state import MeshState


class Protocol(StrEnum):
    """How a waypoint handles the bytes of a service port."""

    HTTP = "http"  # HTTP/1.1, or HTTP/2 with prior knowledge or by upgrade
    HTTP2 = "http2"  # backends get HTTP/2
    TCP = "tcp"
    TLS = "tls"  # not terminated; routed by SNI if a TLSRoute attaches


class AccessLogEncoding(StrEnum):
    """The form of a line of a waypoint's access log (Istio's meshConfig.accessLogEncoding)."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class Settings:
    """Settings of the mesh that configurations depend on.

    `access_log`: waypoints log requests by default; Telemetry objects override it.
    `otlp_endpoint`: `host:port` of the collector of traces, OTLP over gRPC; empty for none.
    `trace_sampling_percent`: of requests that continue no trace; Istio's default is 1.
    `mesh_config`: Istio's MeshConfig, of which `extensionProviders` is used; never modified.
    `locality`: `region/zone/subzone` of the waypoint's pods; empty if it is not known.
    """

    trust_domain: str = DEFAULT_TRUST_DOMAIN
    root_namespace: str = DEFAULT_ROOT_NAMESPACE
    cluster_domain: str = DEFAULT_CLUSTER_DOMAIN
    cluster: str = DEFAULT_CLUSTER
    access_log: bool = False
    access_log_encoding: AccessLogEncoding = AccessLogEncoding.TEXT
    otlp_endpoint: str = ""
    trace_sampling_percent: float = 1.0
    mesh_config: Mapping[str, Any] = field(default_factory=dict)
    locality: str = ""


@dataclass(frozen=True)
class Inputs:
    """The L7 objects and the mesh. Read-only during a compilation."""

    store: L7Store
    mesh: MeshState
    settings: Settings = field(default_factory=Settings)


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """An ingress gateway towards its clients, with what is known of its pods.

    `labels`: of its pods, each set once. `name`: of its Deployment. `canonical_service`,
    `canonical_revision`, `principal`: of a pod. `has_ipv6`: the pods have an IPv6 address.
    """

    name: str
    labels: tuple[dict[str, str], ...] = ()
    canonical_service: str = ""
    canonical_revision: str = ""
    principal: str = ""
    has_ipv6: bool = False


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """What one filter chain serves: a service port, or a pod by its own address; of an ingress
    gateway, clients of its own address.

    Exactly one of `service`, `workload` and `edge` is set. `gateway` is the waypoint or ingress
    gateway, `namespace/name`.
    """

    gateway: str
    protocol: Protocol
    service: Service | None = None
    port: ServicePort | None = None
    workload: Workload | None = None
    edge: Edge | None = None

    @property
    def namespace(self) -> str:
        """The namespace of the service or pod, or of the ingress gateway."""
        owner = self.service or self.workload
        if self.edge is not None:
            return self.gateway.partition("/")[0]
        return owner.namespace if owner is not None else ""
